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
