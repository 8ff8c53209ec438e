"""Which steps are key steps: lists of the released code, even spacing, progressive spacing, and adaptive choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Condition, Guided
from limbeck.diffusion.samplers import Sampler
from limbeck.diffusion.split import split
from limbeck.errors import UserError

#: Name -> (number of steps that the list is made for, key steps).
LISTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "50ls": (50, (0, 1, 2, 3, 5, 10, 15, 25, 35)),
    "50ls_if": (50, (0, 1, 2, 3, 5, 10, 15, 25, 35, 40)),
    "50ls2": (50, (0, 10, 11, 12, 15, 20, 25, 30, 35, 45)),
    "50ls3": (50, (0, 20, 25, 30, 35, 45, 46, 47, 48, 49)),
    "50ls4": (50, (0, 9, 13, 14, 15, 28, 29, 32, 36, 45)),
    "s2": (50, tuple(o for o in range(50) if o < 20 or o > 40 or o % 2 == 0)),
    "75ls": (75, tuple(o for o in range(75) if o > 65 or o < 10 or o % 5 == 0)),
    "75ls2": (75, (0, 1, 2, 3, 5, 10, 15, 25, 35, 45, 55, 65)),
    "100ls": (100, tuple(o for o in range(100) if o > 85 or o < 10 or o % 5 == 0)),
}


@dataclass(frozen=True)
class KeySchedule:
    """The key steps among ``steps`` steps; 0 is the noisiest and always a key.

    Attributes:
        steps: number of steps.
        keys: rising indices, the first of them 0.
        scaled_from: number of steps that the list was made for, where that is another number; else 0.
    """

    steps: int
    keys: tuple[int, ...]
    scaled_from: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError("steps", self.steps, "at least 1")
        if not self.keys or self.keys[0] != 0:
            raise UserError("keys", self.keys, "a list that begins with step 0: before it there is nothing to reuse")
        if any(later <= earlier for earlier, later in zip(self.keys, self.keys[1:], strict=False)):
            raise UserError("keys", self.keys, "rising steps, each once")
        if self.keys[-1] >= self.steps:
            raise UserError("keys", self.keys, f"steps 0 to {self.steps - 1}")

    @classmethod
    def of(cls, keys: Any, steps: int) -> KeySchedule:
        """From a name of :data:`LISTS`, ``all``, ``pro``, an integer m (every m-th step), a list, or a schedule.

        A named list made for another number of steps is scaled to this one (``scaled_from`` says so); an explicit list
        never is.
        """
        if isinstance(keys, KeySchedule):
            if keys.steps != steps:
                raise UserError("keys", f"a schedule for {keys.steps} steps", f"one for {steps}")
            return keys
        if isinstance(keys, bool) or keys is None:
            raise UserError("keys", keys, [*LISTS, "all", "pro", "an integer", "a list of steps"])
        if isinstance(keys, int):
            if not 1 <= keys <= steps:
                raise UserError("keys", keys, f"every m-th step, m from 1 to {steps}")
            return cls(steps, tuple(range(0, steps, keys)))
        if isinstance(keys, str):
            return cls._named(keys, steps)
        return cls(steps, tuple(int(key) for key in keys))

    @classmethod
    def _named(cls, name: str, steps: int) -> KeySchedule:
        if name == "all":
            return cls(steps, tuple(range(steps)))
        if name == "pro":
            # Gaps that grow by one: 0, 2, 5, 9, 14 ..., where 9 + 8 o is a square.
            return cls(steps, tuple(o for o in range(steps) if math.isqrt(9 + 8 * o) ** 2 == 9 + 8 * o))
        if name not in LISTS:
            raise UserError("keys", name, [*LISTS, "all", "pro"])
        made_for, listed = LISTS[name]
        if made_for == steps:
            return cls(steps, listed)
        scaled = sorted({min(steps - 1, key * steps // made_for) for key in listed})
        return cls(steps, tuple(scaled), scaled_from=made_for)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Every key step with the steps that reuse it."""
        for start, stop in zip(self.keys, (*self.keys[1:], self.steps), strict=True):
            yield tuple(range(start, stop))

    def __len__(self) -> int:
        return len(self.keys)


class AdaptiveKeys:
    """Key steps where the encoder's features have moved too far from the last key step's. An extension.

    ``fit`` runs the full sampler once on a few noises and keeps the features; it then walks through the steps and
    makes a step a key when the mean squared change of the features since the last key, over their mean square,
    exceeds the threshold (the mean over the middle output and all skips but the first, which is linear in the input).

    Args:
        count: wanted number of keys; the threshold that gives it is searched for.
        threshold: of the change, in place of ``count``.

    Attributes after ``fit``: ``keys_`` (a :class:`KeySchedule`), ``threshold_``.
    """

    def __init__(self, count: int | None = None, *, threshold: float | None = None) -> None:
        if (count is None) == (threshold is None):
            raise UserError("count and threshold", [count, threshold], "one of the two")
        self.count, self.threshold = count, threshold

    @torch.no_grad()
    def fit(self, guided: Guided, sampler: Sampler, noise: Tensor, condition: Condition = None) -> AdaptiveKeys:
        """Choose the steps for ``sampler`` on some noises with their conditions."""
        network: Any = split(guided.denoiser)
        state, x = sampler.begin(), sampler.start(noise)
        seen: list[list[Tensor]] = []
        conditions = guided.conditions(condition)
        for index in range(len(sampler)):
            given = guided.inputs(sampler.model_input(state, x, index))
            time = sampler.time(index).to(x.device).expand(len(given))
            encoded = network.encode(given, time, conditions)
            seen.append([encoded.hidden, *encoded.skips[1:]])
            x = sampler.step(state, x, guided.combine(network.decode(encoded, time, conditions)), index)
        changes = _changes(seen)
        if self.threshold is not None:
            self.threshold_ = self.threshold
        else:
            self.threshold_ = _threshold_for(changes, int(self.count or 1))
        self.keys_ = KeySchedule(len(sampler), tuple(_walk(changes, self.threshold_)))
        return self


def _changes(seen: list[list[Tensor]]) -> Tensor:
    """``[S, S]``: change of the features between any two steps."""
    steps = len(seen)
    table = torch.zeros(steps, steps, dtype=torch.float64)
    for parts in zip(*seen, strict=True):
        rows = torch.stack([part.flatten() for part in parts]).double()
        table += torch.cdist(rows, rows).square() / rows.square().sum(1).mean()
    return table / len(seen[0])


def _walk(changes: Tensor, threshold: float) -> Iterable[int]:
    last = 0
    yield 0
    for step in range(1, len(changes)):
        if float(changes[last, step]) > threshold:
            last = step
            yield step


def _threshold_for(changes: Tensor, count: int) -> float:
    """The largest of the measured changes that still gives at least ``count`` keys."""
    if not 1 <= count <= len(changes):
        raise UserError("count", count, f"1 to {len(changes)}")
    candidates: list[float] = sorted({0.0, *changes.flatten().tolist()})
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sum(1 for _ in _walk(changes, candidates[middle])) >= count:
            low = middle
        else:
            high = middle - 1
    return candidates[low]
