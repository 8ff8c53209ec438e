"""A teacher that is a formula of the sample id, batches for it, and a small network."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

PARTS = {"teacher": "a" * 64, "preprocessing": "b" * 64}
CLASSES = 7


def logits_of(ids: Tensor, views: Tensor | None = None, classes: int = CLASSES) -> Tensor:
    """``[B, classes]``, different for every id and view."""
    seeds = ids.double() * 0.37 + (0 if views is None else views.double() * 0.11)
    return (torch.sin(seeds.unsqueeze(1) * torch.arange(1, classes + 1)) * 5).float()


class Formula:
    """A source whose answers can be known without it; counts the samples it was asked about."""

    def __init__(self, seconds: float = 0.0, name: str = "formula") -> None:
        self.seconds, self.name, self.asked = seconds, name, 0

    def __call__(self, batch: Any, needs: Collection[str] = ()) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        ids = batch["id"]
        self.asked += len(ids)
        whole = {"logits": logits_of(ids, batch.get("view")), "embedding": logits_of(ids, classes=3) / 5}
        return {name: whole[name] for name in needs or whole}

    def fingerprint(self) -> str:
        return f"{self.name:x<64}"

    def state_dict(self) -> dict[str, Any]:
        return {}


def batches(count: int, size: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
    for first in range(start, start + count, size):
        yield {"id": torch.arange(first, min(first + size, start + count))}


def build(seed: int = 0, heads: int = 2, epsilon: float = 1e-5, activation: str = "relu") -> nn.Sequential:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(8, heads, 16, activation=activation, layer_norm_eps=epsilon)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), layer, nn.Linear(8, 3))
