"""What every source must do, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.signals import Batch, SparseLogits, batch_length
from limbeck.sources.base import Source


class Holder(nn.Module):
    """A network that keeps a source, as a distiller does."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.source = source


def check_source(
    source: Source, batch: Batch, needs: Collection[str], *, tolerance: float = 1e-5, gradient: bool = False
) -> Mapping[str, Any]:
    """Assert the contract on one batch of two or more samples, and return the signals.

    Args:
        tolerance: between answers to the same sample in differently ordered or cut batches.
        gradient: whether the source is meant to pass gradients to its input.
    """
    count = batch_length(batch)
    holder = Holder(source)
    assert not isinstance(source, nn.Module)
    assert {name for name, _ in holder.named_parameters()} == {"own.weight", "own.bias"}
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    holder.train()

    signals = source(batch, needs)
    assert set(needs) <= set(signals)
    for name in needs:
        for tensor in tensors_of(signals[name]):
            assert tensor.shape[0] == count, name
            assert gradient or not tensor.requires_grad, name
            assert not tensor.is_inference(), f"{name}: autograd may not save an inference tensor"
    for network in source.modules():
        assert not any(part.training for part in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())

    assert_same(signals, source(batch, needs), needs, 0.0)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    turned = source(rows_of(batch, order), needs)
    assert_same({name: at(signals[name], order) for name in needs}, turned, needs, tolerance)
    first = torch.arange(1)
    alone = source(rows_of(batch, first), needs)
    assert_same({name: at(signals[name], first) for name in needs}, alone, needs, tolerance)

    assert source.fingerprint() == source.fingerprint() != ""
    source.load_state_dict(source.state_dict())
    assert source.to("cpu") is source
    assert_same(signals, source(batch, needs), needs, 0.0)
    return signals


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any], names: Collection[str], tolerance: float) -> None:
    for name in names:
        for left, right in zip(tensors_of(one[name]), tensors_of(other[name]), strict=True):
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def tensors_of(value: Tensor | SparseLogits) -> list[Tensor]:
    return [value.values, value.indices, value.rest] if isinstance(value, SparseLogits) else [value]


def at(value: Tensor | SparseLogits, rows: Tensor) -> Tensor | SparseLogits:
    return value.map(lambda tensor: tensor[rows]) if isinstance(value, SparseLogits) else value[rows]


def rows_of(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {name: rows_of(item, rows) for name, item in value.items()}
    return [value[row] for row in rows.tolist()] if isinstance(value, list) else value
