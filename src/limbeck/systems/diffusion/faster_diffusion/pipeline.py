"""The method inside a pipeline of diffusers, by one ``with``:

    with accelerated(pipe, keys="50ls", injection=0.003):
        images = pipe(prompt, num_inference_steps=50).images

Inside the block the pipeline object holds stand-ins for its UNet, its ControlNet (if it has one) and its scheduler;
afterwards it holds its own again, also after an error. Classes and the networks themselves are not touched, so other
pipelines that share them go on as they were, and everything the pipeline can do (guidance, LoRA, prompts as
embeddings, image to image, video) works as before.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.adapters import ENCODER_ONLY, SplitDiffusers
from limbeck.diffusion.split import Counted, Counts, split
from limbeck.errors import UserError

from .keys import KeySchedule
from .method import INJECTION_STEPS


@contextmanager
def accelerated(
    pipe: Any,
    keys: Any = "50ls",
    *,
    parallel: bool = True,
    injection: float = 0.0,
    injection_until: float = 500.0,
) -> Iterator[Counts]:
    """Encoder propagation for every call of ``pipe`` inside the block; gives the counts of both halves.

    Args:
        pipe: a diffusers pipeline with ``unet`` and ``scheduler``; its ``controlnet`` is run at key steps too.
        keys: see :meth:`~.keys.KeySchedule.of`; resolved for the number of steps of each call.
        parallel: decode a whole group in one call.
        injection, injection_until: see :class:`~.method.FasterDiffusion`.

    Raises:
        UserError: a pipeline without a UNet (its transformer has no halves), or whose scheduler calls the network more
            than once a step.
    """
    if getattr(pipe, "unet", None) is None:
        raise UserError("pipe", type(pipe).__name__, "a pipeline with a UNet; transformers have no encoder to reuse")
    if getattr(pipe.scheduler, "order", 1) != 1:
        raise UserError("scheduler", type(pipe.scheduler).__name__, "one that calls the network once a step")
    own = {name: getattr(pipe, name) for name in ("unet", "controlnet", "scheduler") if getattr(pipe, name, None)}
    scheduler = copy.copy(own["scheduler"])
    run = _Run(Counted(split(own["unet"])), scheduler, keys, parallel)
    stand_ins = {"unet": _stand_in(own["unet"], run.unet), "scheduler": scheduler}
    if injection:
        _inject(scheduler, injection, injection_until)
    if "controlnet" in own:
        stand_ins["controlnet"] = _stand_in(own["controlnet"], functools.partial(run.control, own["controlnet"]))
    try:
        for name, stand_in in stand_ins.items():
            # Not through the pipeline's own setter, which would write the stand-in into its configuration.
            object.__setattr__(pipe, name, stand_in)
        yield run.network.counts
    finally:
        for name, value in own.items():
            object.__setattr__(pipe, name, value)


class _Run:
    """What the stand-ins of one block share: where the trajectory is, and what its last key step gave."""

    def __init__(self, network: Counted, scheduler: Any, keys: Any, parallel: bool) -> None:
        self.network, self.scheduler, self.keys, self.parallel = network, scheduler, keys, parallel
        self.last = -1
        self.key = -1
        self.encoded: Any = None
        self.ready: dict[int, Tensor] = {}
        self.residuals: Any = None
        self.residuals_at = -1

    def unet(self, sample: Tensor, timestep: Any, *positional: Any, return_dict: bool = True, **given: Any) -> Any:
        """In place of the UNet's forward."""
        if positional:
            given["encoder_hidden_states"] = positional[0]
        if len(positional) > 1:
            raise UserError("unet", f"{len(positional)} positional arguments", "sample, time, text; the rest by name")
        index = self._index(timestep)
        if self._is_key(index):
            # A first step that is no key (image to image begins in the middle) has nothing to reuse.
            self.key, self.ready = index, {}
            self.encoded = self.network.encode(sample, self._times([index], len(sample)), given)
        self.last = index
        if index not in self.ready:
            steps = self._group(index) if self.parallel else [index]
            self._decode(steps, len(sample), given)
        output = self.ready.pop(index)
        if not return_dict:
            return (output,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=output)

    def control(self, network: Any, sample: Tensor, timestep: Any, *positional: Any, **given: Any) -> Any:
        """In place of the ControlNet's forward: its residuals are part of the skips, so it runs at key steps alone."""
        index = self._index(timestep)
        if self._is_key(index) or self.residuals is None:
            self.residuals = network(sample, timestep, *positional, **given)
        return self.residuals

    def _decode(self, steps: list[int], rows: int, given: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in given.items() if name not in ENCODER_ONLY}
        repeated = {name: _repeat(value, rows, len(steps)) for name, value in kept.items()}
        output = self.network.decode(self.encoded.repeat(len(steps)), self._times(steps, rows), repeated)
        self.ready.update(zip(steps, output.chunk(len(steps)), strict=True))

    def _schedule(self) -> KeySchedule:
        return KeySchedule.of(self.keys, len(self.scheduler.timesteps))

    def _is_key(self, index: int) -> bool:
        return index <= self.last or self.encoded is None or index in self._schedule().keys

    def _group(self, index: int) -> list[int]:
        stops = [key for key in self._schedule().keys if key > index]
        return list(range(index, stops[0] if stops else len(self.scheduler.timesteps)))

    def _index(self, timestep: Any) -> int:
        times = self.scheduler.timesteps
        found = (times == torch.as_tensor(timestep, device=times.device).flatten()[0]).nonzero()
        if not len(found):
            raise UserError("timestep", float(torch.as_tensor(timestep).flatten()[0]), "one of the scheduler's")
        return int(found[0])

    def _times(self, steps: list[int], rows: int) -> Tensor:
        network = self.network.network
        times: Tensor = self.scheduler.timesteps[steps].repeat_interleave(rows)
        return times.to(network.device) if isinstance(network, SplitDiffusers) else times


def _stand_in(network: Any, forward: Any) -> Any:
    """A shallow copy of a module that shares everything but its forward; it is an instance of the same class."""
    copied = copy.copy(network)
    # Hooks of the network fire where it is called itself.
    hooks: dict[str, Any] = {
        name: OrderedDict() for name in vars(network) if name.startswith("_forward_") and name.endswith("hooks")
    }
    vars(copied).update(hooks, forward=forward)
    return copied


def _inject(scheduler: Any, share: float, until: float) -> None:
    """Let the scheduler's step, of this object alone, add the trajectory's first latent before it."""
    plain = type(scheduler).step
    seen: dict[str, Any] = {"first": None, "time": None}

    @functools.wraps(plain)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *positional: Any, **given: Any) -> Any:
        time = float(timestep)
        if seen["first"] is None or time >= seen["time"]:
            seen["first"] = sample
        seen["time"] = time
        if time < until:
            sample = sample + share * INJECTION_STEPS / len(scheduler.timesteps) * seen["first"]
        return plain(scheduler, model_output, timestep, sample, *positional, **given)

    # The pipelines look at the parameters of step; a bound method has no self.
    signature = inspect.signature(plain)
    step.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    scheduler.step = step


def _repeat(value: Any, rows: int, times: int) -> Any:
    """Whatever has a row per sample, repeated; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() and len(value) == rows:
        return value.repeat(times, *(1,) * (value.dim() - 1))
    if isinstance(value, Mapping):
        return {name: _repeat(one, rows, times) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_repeat(one, rows, times) for one in value)
    return value
