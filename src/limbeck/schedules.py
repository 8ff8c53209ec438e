"""Values that change over training, as pure functions of progress, so that they need no state of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """A number for every progress from 0 (start of training) to 1 (end)."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value at ``progress``."""


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine, as EMA momenta and learning rates are often changed."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def at(value: float | Schedule, progress: float) -> float:
    """The number itself, or the schedule's value at ``progress``."""
    return value(progress) if isinstance(value, Schedule) else float(value)


@dataclass(frozen=True)
class HalfLife(Schedule):
    """Momentum of an average whose memory is short at first: EDM's averaging, in steps.

    The half-life is ``half_life`` steps, but at most ``ramp`` times the steps taken so far.

    Args:
        half_life: in steps. steps: of the whole training, since progress is a share of it.
        ramp: share of the past that counts; None for a fixed half-life.
    """

    half_life: float
    steps: int
    ramp: float | None = 0.05

    def __call__(self, progress: float) -> float:
        life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * progress * self.steps)
        return float(0.5 ** (1 / life)) if life > 0 else 0.0
