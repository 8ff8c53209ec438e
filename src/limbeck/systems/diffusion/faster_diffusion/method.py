"""Faster Diffusion: the UNet's encoder runs at a few key steps; the steps between reuse what it gave.

A UNet is an encoder E (first convolution, down blocks, middle) and a decoder D (up blocks, output). Between
neighbouring denoising steps E's features hardly change, D's do. With key steps K, 0 in K:

    o in K        h, skips = E(x_t, t, c)                        eps = D(h, skips, t, c)
    o not in K    h, skips of the last key step                  eps = D(h, skips, t, c)        its own t, no x

The skips include the output of the first convolution, so x_t does not enter the network at all between key steps: it
enters the sampler's update alone. Hence the steps of one group are known at its key step, and the parallel form makes
all their eps in one call of D, a batch of group x samples. It computes the same numbers.

What is smoothed away comes back by a little of the first noise, before the sampler's step:

    x <- x + 0.003 x_T        where t < 500

"Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models", NeurIPS 2024; facts from its released
code. Nothing is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Condition, Guided, stacked
from limbeck.diffusion.samplers import Sampler
from limbeck.diffusion.split import Counted, Counts, Encoded, split
from limbeck.errors import UserError

from .keys import KeySchedule

REUSE = ("encoder", "output")
#: The paper's injections are per step of 50.
INJECTION_STEPS = 50


class FasterDiffusion:
    """A sampler around any UNet that has two halves.

    Args:
        network: a UNet with ``encode`` and ``decode``, or one of diffusers (see :func:`limbeck.diffusion.split.split`);
            diffusion transformers are refused.
        sampler: DDIM, Euler, DPMSolverPP or FromDiffusers: one network call a step.
        keys: see :meth:`KeySchedule.of <.keys.KeySchedule.of>`.
        scale, null: guidance, see :class:`~limbeck.diffusion.denoiser.Guided`.
        parallel: decode a whole group in one call.
        largest_batch: rows (samples x halves x steps) of one call at most; memory grows with it.
        injection: share of the first noise added at every step below ``injection_until``, for 50 steps; with S steps
            it is 50 / S times that, so that the total stays.
        reuse: ``output`` repeats the key step's eps instead: the rival that skips steps altogether.

    What a trajectory needs between steps is local to :meth:`sample`: two samplers may share a network.
    """

    def __init__(
        self,
        network: Any,
        sampler: Sampler,
        keys: Any = "50ls",
        *,
        scale: float = 1.0,
        null: Any = None,
        parallel: bool = True,
        largest_batch: int | None = None,
        injection: float = 0.0,
        injection_until: float = 500.0,
        reuse: str = "encoder",
    ) -> None:
        if sampler.calls_per_step != 1:
            raise UserError("sampler", type(sampler).__name__, "one that calls the network once a step")
        if reuse not in REUSE:
            raise UserError("reuse", reuse, REUSE)
        if injection < 0:
            raise UserError("injection", injection, "0 or more")
        self.network = Counted(split(network))
        self.guided = Guided(self.network, scale, null)
        self.sampler, self.keys = sampler, KeySchedule.of(keys, len(sampler))
        self.parallel, self.largest_batch, self.reuse = parallel, largest_batch, reuse
        self.injection = injection * INJECTION_STEPS / len(sampler)
        self.injection_until = injection_until

    @property
    def counts(self) -> Counts:
        """Calls and rows of both halves so far."""
        return self.network.counts

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples from ``noise`` ``[B, ...]``; ``generator`` is for samplers that draw noise of their own."""
        state, first = self.sampler.begin(), self.sampler.start(noise)
        conditions, x = self.guided.conditions(condition), first
        device = x.device
        for group in self.keys.groups():
            given = self.guided.inputs(self.sampler.model_input(state, x, group[0]))
            encoded = self.network.encode(given, self._times(group[:1], len(given), device), conditions)
            outputs = self._outputs(encoded, conditions, group)
            for index, output in zip(group, outputs, strict=True):
                if self.injection and float(self.sampler.time(index)) < self.injection_until:
                    x = x + self.injection * first
                x = self.sampler.step(state, x, output, index, generator)
        return x

    def _outputs(self, encoded: Encoded, conditions: Condition, group: tuple[int, ...]) -> list[Tensor]:
        """The guided eps of every step of a group."""
        if self.reuse == "output":
            return self._decoded(encoded, conditions, group[:1]) * len(group)
        size = len(group) if self.parallel else 1
        if self.parallel and self.largest_batch is not None:
            size = max(1, min(size, self.largest_batch // len(encoded)))
        parts = [group[start : start + size] for start in range(0, len(group), size)]
        return [output for part in parts for output in self._decoded(encoded, conditions, part)]

    def _decoded(self, encoded: Encoded, conditions: Condition, steps: tuple[int, ...]) -> list[Tensor]:
        """One call of the decoder: the null halves of all steps, then their conditional halves."""
        rows = len(encoded) // self.guided.halves
        halves = [slice(start, start + rows) for start in range(0, len(encoded), rows)]
        repeated = [encoded.rows(half.start, half.stop).repeat(len(steps)) for half in halves]
        output = self.network.decode(
            Encoded.cat(repeated),
            torch.cat([self._times(steps, rows, encoded.hidden.device)] * len(halves)),
            stacked([_repeated(conditions, half, len(steps)) for half in halves]),
        )
        return list(self.guided.combine(output).chunk(len(steps)))

    def _times(self, steps: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
        times = torch.stack([self.sampler.time(index) for index in steps])
        return times.to(device).repeat_interleave(rows)


def _repeated(conditions: Condition, half: slice, times: int) -> Condition:
    if conditions is None:
        return None
    if isinstance(conditions, Tensor):
        return torch.cat([conditions[half]] * times)
    return {name: torch.cat([value[half]] * times) for name, value in conditions.items()}
