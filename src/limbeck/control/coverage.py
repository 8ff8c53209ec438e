"""What exploration reached: visits per place, coverage, first success, and how long learning took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import UserError


class Visits:
    """Counts of visits to the cells of a grid of any number of axes.

    Args:
        shape: of the grid.
        reachable: how many cells can be reached at all; all of them by default.
    """

    def __init__(self, shape: Sequence[int], reachable: int | None = None) -> None:
        self.counts = np.zeros(tuple(shape), dtype=np.int64)
        self.reachable = self.counts.size if reachable is None else reachable

    def add(self, cells: NDArray[Any]) -> None:
        """Count one visit for every row of ``cells`` ``[N, axes]``."""
        if cells.ndim != 2 or cells.shape[1] != self.counts.ndim:
            raise UserError("cells", list(cells.shape), f"[N, {self.counts.ndim}]")
        np.add.at(self.counts, tuple(cells.T), 1)

    @property
    def coverage(self) -> float:
        """Share of the reachable cells that were visited."""
        return float((self.counts > 0).sum() / self.reachable)

    @property
    def evenness(self) -> float:
        """Entropy of the visits over that of equal visits to all reachable cells, 0 to 1."""
        shares = self.counts[self.counts > 0] / max(self.counts.sum(), 1)
        return float(-(shares * np.log(shares)).sum() / np.log(max(self.reachable, 2)))

    def state_dict(self) -> dict[str, Any]:
        return {"counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts = state["counts"].numpy().copy()


def steps_to_share(
    steps: Sequence[int], success: Sequence[float], budget: int, *, share: float = 0.5, window: int = 100
) -> int:
    """Environment steps until ``share`` of the last ``window`` episodes succeeded; the ``budget`` if that never was.

    Args:
        steps: environment steps done when each episode ended, rising.
        success: 0 or 1 for each.
    """
    if len(success) < window:
        return budget
    sums = np.convolve(np.asarray(success, float), np.ones(window), "valid") / window
    reached = np.flatnonzero(sums >= share)
    return min(int(steps[reached[0] + window - 1]), budget) if len(reached) else budget


def first_success(steps: Sequence[int], success: Sequence[float], budget: int) -> int:
    """Environment steps until the first success; the ``budget`` if there was none."""
    reached = np.flatnonzero(np.asarray(success, float) > 0)
    return min(int(steps[reached[0]]), budget) if len(reached) else budget


def regret(returns: Sequence[float], best: float) -> float:
    """Mean shortfall of the episodes' returns below ``best``: 0 for an agent that knew from the start."""
    return float(best - np.mean(returns)) if len(returns) else best
