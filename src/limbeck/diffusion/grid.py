"""The steps of a sampler: their times and noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.diffusion.noise import DiscreteSchedule, EDMSchedule, NoiseSchedule
from limbeck.errors import UserError

SPACINGS = ("leading", "trailing", "linspace")
LAST = ("clean", "first")


@dataclass(frozen=True)
class Grid:
    """The times of S steps, noisiest first, and the noise levels of S + 1 points, of which the last has no time.

    Attributes:
        times: ``[S]``. alpha, sigma: ``[S + 1]``, float64.
        unit: whether the first point is unit noise (schedules that preserve the variance).
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    unit: bool

    def __len__(self) -> int:
        return len(self.times)

    @classmethod
    def at(cls, schedule: NoiseSchedule, times: Tensor, *, last: str = "clean") -> Grid:
        """Steps at the given falling times. ``last``: see :meth:`spaced`."""
        if last not in LAST:
            raise UserError("last", last, LAST)
        times = torch.as_tensor(times)
        if times.dim() != 1 or not len(times) or bool((times[1:] >= times[:-1]).any()):
            raise UserError("times", times.tolist(), "falling times, at least one")
        alpha, sigma = schedule.alpha(times).double(), schedule.sigma(times).double()
        ends = (1.0, 0.0)
        if last == "first":
            lowest = torch.zeros((), dtype=torch.long)
            ends = (float(schedule.alpha(lowest)), float(schedule.sigma(lowest)))
        return cls(
            times,
            torch.cat([alpha, alpha.new_tensor([ends[0]])]),
            torch.cat([sigma, sigma.new_tensor([ends[1]])]),
            schedule.preserves_variance,
        )

    @classmethod
    def spaced(
        cls,
        schedule: DiscreteSchedule,
        steps: int,
        *,
        spacing: str = "leading",
        offset: int = 0,
        last: str = "clean",
    ) -> Grid:
        """``steps`` of the schedule's times.

        Args:
            spacing: ``leading`` 0, k, 2k ... (then turned round; the noisiest time is left out), ``trailing`` T - 1,
                T - 1 - k ... (the least noisy is left out), ``linspace`` from T - 1 to 0, rounded.
            offset: added to ``leading`` times; 1 for Stable Diffusion.
            last: the point after the last step: ``clean`` (alpha 1) or ``first``, the schedule's time 0.
        """
        total = len(schedule)
        if spacing not in SPACINGS:
            raise UserError("spacing", spacing, SPACINGS)
        if not 1 <= steps <= total:
            raise UserError("steps", steps, f"1 to {total}")
        if spacing == "leading":
            times = torch.arange(steps).flip(0) * (total // steps) + offset
        elif spacing == "trailing":
            places = torch.arange(steps, dtype=torch.float64)
            times = (total - places * (total / steps)).round().long() - 1
        else:
            times = torch.linspace(0, total - 1, steps, dtype=torch.float64).round().long().flip(0)
        return cls.at(schedule, times, last=last)

    @classmethod
    def karras(cls, schedule: EDMSchedule, steps: int) -> Grid:
        """EDM's grid of noise levels, from ``largest`` to ``smallest``."""
        if steps < 1:
            raise UserError("steps", steps, "at least 1")
        places = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return cls.at(schedule, schedule.karras(places))
