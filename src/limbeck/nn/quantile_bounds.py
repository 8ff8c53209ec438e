"""A small network that looks at two next-token distributions and says which stretch of one of them to match."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QuantileBounds(nn.Module):
    """Two bounds of cumulative probability per position, ``lower`` in (0, 1/2) and ``upper`` in (1/2, 1).

    Args:
        features: log-probabilities of the teacher's so many most probable classes, and of the student's at the same
            classes; missing ones of a smaller vocabulary count as improbable.
        hidden: width of the one hidden layer.

    It begins near [0.01, 0.99], so that training starts with almost the whole distribution.
    """

    def __init__(self, features: int = 64, hidden: int = 64) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(nn.Linear(2 * features, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        nn.init.normal_(last.weight, std=0.01)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([-4.0, 4.0]))

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """``lower`` and ``upper`` ``[...]`` from log-probabilities ``[..., K]``, the most probable class first."""
        given = torch.cat([self._cut(teacher), self._cut(student)], dim=-1)
        low, high = self.layers(given).sigmoid().unbind(dim=-1)
        return 0.5 * low, 0.5 + 0.5 * high

    def _cut(self, values: Tensor) -> Tensor:
        # Log-probabilities of thousands of classes reach from 0 to -30; the network sees numbers of order 1.
        values = values[..., : self.features].clamp_min(-20.0) / 10 + 1
        return nn.functional.pad(values, (0, self.features - values.shape[-1]), value=-1.0)
