"""A small network, its batches, and a checkpoint-free way to see what a source does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NEEDS = ("logits", "middle")


class Network(nn.Module):
    """Has what a frozen teacher must not use: dropout, and BatchNorm that learns."""

    def __init__(self, seed: int = 0, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.middle = nn.Linear(6, 8)
        self.norm = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.middle(x)))


def batch(count: int = 12, classes: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "id": torch.arange(count) * 7 + 3,
        "input": torch.randn(count, 6, generator=generator),
        "target": torch.arange(count) % classes,
    }


def trained(model: nn.Module, steps: int = 3) -> nn.Module:
    """The same network, a few steps later."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model.train()(batch()["input"]).square().mean().backward()
        optimizer.step()
    return model
