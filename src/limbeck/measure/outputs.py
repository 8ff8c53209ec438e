"""What a network says of many samples, stacked in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.nn.mode import evaluating
from limbeck.signals import Batch, run_network


def features_of(model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
    """Features ``[N, D]`` of all batches, in evaluation mode; ``forward`` gives those of one batch."""
    with evaluating(model), torch.inference_mode():
        parts = [forward(model, batch).float() for batch in batches]
    return torch.cat(parts).clone()


def logits_of(
    model: nn.Module, split: Split, batch_size: int = 512, *, collate: Callable[[list[Any]], Any] | None = None
) -> Tensor:
    """Logits ``[N, C]`` of a whole split, in evaluation mode; ``collate`` as for ``TensorLoader``."""
    batches = TensorLoader(split, batch_size, shuffle=False, collate=collate)
    return features_of(model, batches, lambda network, batch: run_network(network, batch)["logits"])
