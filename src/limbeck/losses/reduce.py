"""One reduction rule for every loss: values per row, then a mask, weights and a named reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError

REDUCTIONS = ("none", "sum", "mean")


class _Processes(NamedTuple):
    number: int
    add: Callable[[Tensor], Tensor]


_PROCESSES: ContextVar[_Processes | None] = ContextVar("processes", default=None)


@contextmanager
def split_over(processes: int, add: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the rows of a row-by-row loss are one of ``processes`` parts of a batch.

    A sum or mean is then that of the whole batch, once the processes' values are averaged: so is the gradient, since
    data-parallel training averages those. Unequal parts and masks are counted exactly.

    Args:
        processes: their number.
        add: the sum of a tensor over the processes; every one of them must run the same losses in the same order.
    """
    token = _PROCESSES.set(_Processes(processes, add) if processes > 1 else None)
    try:
        yield
    finally:
        _PROCESSES.reset(token)


_COUNTS: ContextVar[list[Tensor] | None] = ContextVar("counts", default=None)


@contextmanager
def counting() -> Iterator[list[Tensor]]:
    """Inside, every mean over rows notes how many they were, over all processes; a given ``denominator`` is not one."""
    counts: list[Tensor] = []
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def finish_rows(
    summed: Tensor, rows: Tensor | int, *, reduction: str, denominator: Tensor | float | None = None
) -> Tensor:
    """The ``sum`` or ``mean`` of rows from their plain sum and how many of them count.

    ``summed`` may also be the row weights themselves, for a loss that needs to know beforehand what it will multiply
    each row by.
    """
    processes = _PROCESSES.get()
    if processes is not None:
        summed = summed * processes.number
    if reduction == "sum":
        return summed
    if denominator is None:
        denominator = torch.as_tensor(rows, device=summed.device)
        if processes is not None:
            denominator = processes.add(denominator)
        if (counts := _COUNTS.get()) is not None:
            counts.append(denominator)
        denominator = denominator.clamp_min(1)
    return summed / denominator


def reduce_rows(
    values: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Reduce a loss of one value per row.

    Args:
        values: ``[...]``, one value per row.
        mask: bool, broadcastable to ``values``; rows that are False give exactly zero and no gradient.
        weight: float, broadcastable to ``values``; a plain multiplier, never part of the denominator.
        reduction: ``none`` (per row), ``sum``, or ``mean``: the sum over ``denominator``.
        denominator: for ``mean``; by default the number of unmasked rows (at least 1). Give the count of the whole
            batch to make the pieces of a split batch add up to its mean, whatever the pieces hold.

    Returns:
        ``[...]`` for ``none``, else a scalar; float32, or float64 if ``values`` are.
    """
    if reduction not in REDUCTIONS:
        raise UserError("reduction", reduction, REDUCTIONS)
    values = full_precision(values)
    if mask is not None:
        mask = mask.expand_as(values)
        values = torch.where(mask, values, 0.0)
    if weight is not None:
        weighted = values * weight.to(values.dtype)
        # A weight of a masked row may be anything, NaN included.
        values = weighted if mask is None else torch.where(mask, weighted, 0.0)
    if reduction == "none":
        return values
    rows = values.numel() if mask is None else mask.sum()
    return finish_rows(values.sum(), rows, reduction=reduction, denominator=denominator)


def full_precision(tensor: Tensor) -> Tensor:
    """float32 for half types and integers; float32 and float64 stay what they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def hide_masked(tensor: Tensor, mask: Tensor | None, dims: int = 1) -> Tensor:
    """Put zero where a row is masked, so that no infinity or NaN in it can reach a gradient.

    Args:
        tensor: ``[..., *features]`` with ``dims`` feature axes.
        mask: bool ``[...]`` or None.
        dims: how many trailing axes belong to one row.
    """
    tensor = full_precision(tensor)
    if mask is None:
        return tensor
    return torch.where(mask.reshape(*mask.shape, *[1] * dims), tensor, 0.0)
