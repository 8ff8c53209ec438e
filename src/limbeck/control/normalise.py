"""Running normalisers of observations and of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError


class RunningMoments:
    """Mean and variance per feature of all rows seen, in double precision (Chan's parallel formula).

    Called on rows ``[..., *shape]`` it whitens them: ``(x - mean) / sqrt(variance + 1e-8)``, clipped to ``+-clip``.
    Before anything was seen it returns rows as they are.

    RND whitens what its networks see with ``clip=5``: without it a random network is nearly constant on observations
    of small spread, or saturated on those of large. Do not whiten one-hot states: a rare one becomes a spike.

    Args:
        shape: of one row; ``()`` for scalars.
        clip: largest size of a whitened number; None for no limit.
    """

    def __init__(self, shape: Sequence[int] = (), clip: float | None = None) -> None:
        self.clip = clip
        self.count = 0.0
        self.mean = torch.zeros(tuple(shape), dtype=torch.float64)
        self.variance = torch.ones(tuple(shape), dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Take in ``rows`` ``[B, *shape]``."""
        if tuple(rows.shape[1:]) != tuple(self.mean.shape):
            raise UserError("rows", list(rows.shape), f"[B, {', '.join(map(str, self.mean.shape))}]")
        if not len(rows):
            return
        rows = rows.detach().to(self.mean)
        count, mean, variance = len(rows), rows.mean(dim=0), rows.var(dim=0, correction=0)
        total = self.count + count
        difference = mean - self.mean
        between = difference**2 * (self.count * count / total)
        self.variance = (self.variance * self.count + variance * count + between) / total
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def __call__(self, rows: Tensor) -> Tensor:
        if not self.count:
            return rows
        scaled = (rows - self.mean.to(rows)) / (self.variance + 1e-8).sqrt().to(rows)
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)

    def to(self, device: torch.device | str) -> RunningMoments:
        self.mean, self.variance = self.mean.to(device), self.variance.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.clone(), "variance": self.variance.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = float(state["count"])
        self.mean, self.variance = state["mean"].to(self.mean), state["variance"].to(self.variance)


class ReturnScale:
    """Divides rewards by the running standard deviation of their discounted sum, so that bonuses have a steady size.

    ``g_t = gamma g_{t-1} + r_t`` runs along every environment, over the ends of episodes, as in RND. Rewards are not
    centred: a bonus stays positive.
    """

    def __init__(self, environments: int, gamma: float = 0.99) -> None:
        self.gamma = gamma
        self.sums = torch.zeros(environments, dtype=torch.float64)
        self.moments = RunningMoments()

    def update(self, rewards: Tensor) -> None:
        """Take in rewards ``[T, N]`` in the order of time."""
        if rewards.ndim != 2 or rewards.shape[1] != len(self.sums):
            raise UserError("rewards", list(rewards.shape), f"[T, {len(self.sums)}]")
        found = []
        for row in rewards.to(self.sums):
            self.sums = self.gamma * self.sums + row
            found.append(self.sums)
        self.moments.update(torch.cat(found))

    def __call__(self, rewards: Tensor) -> Tensor:
        return rewards / (self.moments.variance + 1e-8).sqrt().to(rewards) if self.moments.count else rewards

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone(), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = state["sums"].to(self.sums)
        self.moments.load_state_dict(state["moments"])
