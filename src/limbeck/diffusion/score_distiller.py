"""The loop of score distillation: a generator and a fake score that take turns, with a frozen teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.diffusion.denoiser import Condition, count, null_like
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.scores import Scores
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.players import Players
from limbeck.errors import UserError
from limbeck.schedules import Schedule
from limbeck.sources.student import EMA


class Noised(NamedTuple):
    """Samples at times: ``x`` and ``noise`` ``[B, ...]``, ``t`` ``[B]``."""

    x: Tensor
    t: Tensor
    noise: Tensor


class ScoreDistiller(Players):
    """What methods share; a subclass writes :meth:`~limbeck.engine.Players.turns` of ``generator`` and ``fake``.

    Args:
        generator: learns. scores: teacher and fake score.
        shape: of one sample.
        optimizers: of ``generator`` and ``fake``.
        average: momentum of the generator's average, which :meth:`finish` gives; None for none. A
            :class:`~limbeck.schedules.Schedule` needs ``steps``.
        times: ``(low, high)``: t is drawn evenly from low to high - 1.
        gradient_clip: largest norm, per player.

    A batch's ``input`` is the condition, one row per sample to make; no sample of data is needed. The networks stay in
    the mode that they have (pretrained ones in eval).
    """

    def __init__(
        self,
        generator: Generator,
        scores: Scores,
        shape: Sequence[int],
        *,
        optimizers: Mapping[str, OptimizerSettings],
        average: float | Schedule | None = 0.99,
        steps: int | None = None,
        times: tuple[int, int] = (20, 981),
        gradient_clip: float | None = None,
    ) -> None:
        if set(optimizers) != {"generator", "fake"}:
            raise UserError("optimizers", sorted(optimizers), ["generator", "fake"])
        schedule = scores.schedule
        if not isinstance(schedule, DiscreteSchedule) or not 0 <= times[0] < times[1] <= len(schedule):
            raise UserError("times", times, "low < high inside the teacher's discrete schedule")
        super().__init__({name: optimizers[name] for name in ("generator", "fake")}, gradient_clip=gradient_clip)
        frozen = scores.frozen.modules() if scores.frozen is not None else []
        theirs = {id(weight) for network in (*frozen, scores.weights) for weight in network.parameters()}
        if any(id(weight) in theirs for weight in generator.parameters()):
            raise UserError("generator", "a network that shares weights with a score", "a copy of its own")
        generator.requires_grad_(True)
        self.generator, self.fake_weights = generator, scores.weights
        self.scores, self.schedule = scores, schedule
        self.shape, self.times = tuple(shape), times
        if scores.frozen is not None:
            self.sources["teacher"] = scores.frozen
        if average is not None:
            self.sources["average"] = EMA(generator.network, average, steps=steps)
            self.followed["average"] = generator.network

    def weights_of(self, player: str) -> list[nn.Parameter]:
        """See :class:`~limbeck.engine.Players`."""
        return list((self.generator if player == "generator" else self.fake_weights).parameters())

    def noise(self, condition: Condition) -> Tensor:
        """The generator's first input, one row per condition."""
        like = next(self.generator.parameters())
        return torch.randn(count(condition), *self.shape, device=like.device, dtype=like.dtype)

    def noised(self, x: Tensor, times: tuple[int, int] | None = None) -> Noised:
        """x with fresh noise at times drawn per sample."""
        low, high = times or self.times
        t = torch.randint(low, high, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        return Noised(self.schedule.add_noise(x, noise, t), t, noise)

    def some_null(self, condition: Condition, share: float, *, per: str = "sample") -> Condition:
        """``condition``, with the null condition in a random ``share`` of samples, or of whole batches."""
        if per not in ("sample", "batch"):
            raise UserError("per", per, ("sample", "batch"))
        if share == 0:
            return condition
        null = null_like(condition, self.scores.null)
        if per == "batch":
            return null if float(torch.rand(())) < share else condition
        if isinstance(condition, Mapping):
            rows = torch.rand(count(condition)) < share
            return {name: _chosen(rows, null[name], value) for name, value in condition.items()}  # type: ignore[index]
        return _chosen(torch.rand(len(condition)) < share, null, condition)  # type: ignore[arg-type]

    def finish(self, *, averaged: bool = True) -> Generator:
        """The generator in eval mode, of its averaged weights if there are any; frozen, and a copy."""
        made = copy.deepcopy(self.generator)
        average: Any = self.sources.get("average")
        if averaged and average is not None:
            made.network.load_state_dict(average.model.state_dict())
        return made.eval().requires_grad_(False)


def agreement(real: Tensor, fake: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """What to watch: the direction's root mean square, and the cosine between both scores.

    A cosine near 1 with a direction near 0 is the goal; a fake score that lags behind shows in a low cosine.
    """
    cosine = functional.cosine_similarity(real.flatten(1), fake.flatten(1)).mean()
    return {"direction": direction.square().mean().sqrt(), "cosine": cosine}


def _chosen(rows: Tensor, null: Any, given: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (given.dim() - 1)
    return torch.where(rows.to(given.device).view(shape), null, given)
