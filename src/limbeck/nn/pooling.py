"""Pooling over the rows of groups: which rows count, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError

REDUCTIONS = ("sum", "mean", "max")


def group_numbers(offsets: Tensor) -> Tensor:
    """The group of every row: ``offsets`` int64 ``[G + 1]`` of groups that follow one another -> int64 ``[N]``."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


def masked_pool(values: Tensor, offsets: Tensor, weight: Tensor | None = None, reduction: str = "sum") -> Tensor:
    """One row per group from the rows that count.

        sum:  out_g = sum_i w_i x_i        mean:  out_g = sum_i w_i x_i / sum_i w_i        max over rows with w_i > 0

    Args:
        values: ``[N, D]``; rows of a group follow one another.
        offsets: int64 ``[G + 1]``: group ``g`` owns the rows ``offsets[g]`` to ``offsets[g + 1] - 1``.
        weight: ``[N]``, 0 for rows that do not count (a bool mask will do); every row counts once by default. What a
            row that does not count holds, NaN included, has no effect.
        reduction: ``sum``, ``mean`` or ``max``.

    Returns:
        ``[G, D]``; zeros for a group in which nothing counts.
    """
    if reduction not in REDUCTIONS:
        raise UserError("reduction", reduction, REDUCTIONS)
    if offsets[-1] != len(values):
        raise UserError("offsets", int(offsets[-1]), f"the number of rows, {len(values)}, as the last one")
    groups, count = group_numbers(offsets), len(offsets) - 1
    out = values.new_zeros(count, values.shape[-1])
    if weight is None:
        weight = values.new_ones(len(values))
    weight = weight.to(values.dtype).unsqueeze(-1)
    counted = weight > 0
    if reduction == "max":
        index = groups.unsqueeze(-1).expand_as(values)
        least = torch.where(counted, values, torch.finfo(values.dtype).min)
        found = out.scatter_reduce(0, index, least, "amax", include_self=False)
        anything = out.new_zeros(count, 1).index_add(0, groups, weight) > 0
        return torch.where(anything, found, 0.0)
    total = out.index_add(0, groups, torch.where(counted, values, 0.0) * weight)
    if reduction == "sum":
        return total
    return total / out.new_zeros(count, 1).index_add(0, groups, weight).clamp_min(torch.finfo(values.dtype).tiny)
