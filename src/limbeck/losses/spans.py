"""What neighbouring positions say together: products of two next-token distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask
from limbeck.losses.reduce import full_precision, reduce_rows
from limbeck.signals import SparseLogits


def span_product(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    k: int | None = 32,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of the products of neighbouring distributions, for pairs of positions inside one span.

    Formula: ``sum_v (p_i(v) p_{i+1}(v) - q_i(v) q_{i+1}(v))^2`` for the pair (i, i + 1), p teacher, q student
    Source: Multi-Granularity Semantic Revision for Large Language Model Distillation, 2024
    Batch-wise: no

    A row is a pair: ``mask`` says which neighbours stand in one span (``limbeck.language.same_span``).

    Args:
        student_logits: ``[..., L, V]``, at least two positions.
        teacher_logits: the same, or sparse.
        k: the sum runs over the teacher's ``k`` most probable classes of either position, at most 2k; None for the
            whole vocabulary. A sparse teacher counts 0 for classes that it did not keep.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`; rows ``[..., L - 1]``.

    Returns:
        Of the order of a product of squared probabilities, at most 2 and usually far below 0.1: compare gradient norms
        before adding it to other terms.

    Raises:
        UserError: shapes that differ, fewer than two positions, ``k`` below 1.
    """
    shape = _teacher_shape(teacher_logits)
    if student_logits.dim() < 2 or student_logits.shape[-2] < 2 or student_logits.shape != shape:
        raise UserError(
            "teacher_logits", f"shape {list(shape)}", f"the student's, {list(student_logits.shape)}, L >= 2"
        )
    if k is not None and k < 1:
        raise UserError("k", k, "1 or more, or None for all classes")
    mask = check_row_mask(mask, torch.Size([*shape[:-2], shape[-2] - 1]))
    used = None
    if mask is not None:
        edge = torch.zeros_like(mask[..., :1])
        used = torch.cat([mask, edge], -1) | torch.cat([edge, mask], -1)
    student = _hidden(student_logits, used).log_softmax(dim=-1)
    if isinstance(teacher_logits, SparseLogits):
        values, ids = _hidden(teacher_logits.values, used), teacher_logits.indices
        ids = ids if used is None else torch.where(used.unsqueeze(-1), ids, 0)
        ids = ids if k is None else ids[..., :k]
        union, fresh = _union(ids)
        theirs = [_looked_up(union, teacher_logits.indices[..., place, :], values[..., place, :]) for place in _PAIR]
    else:
        teacher = _hidden(teacher_logits, used).log_softmax(dim=-1)
        if k is None or k >= shape[-1]:
            union, fresh = None, None
        else:
            union, fresh = _union(teacher.topk(k, dim=-1).indices)
        theirs = [_at(teacher[..., place, :], union) for place in _PAIR]
    ours = [_at(student[..., place, :], union) for place in _PAIR]
    gap = (theirs[0] + theirs[1]).exp() - (ours[0] + ours[1]).exp()
    gap = gap if fresh is None else torch.where(fresh, gap, 0.0)
    return reduce_rows(gap.square().sum(dim=-1), mask=mask, weight=weight, reduction=reduction, denominator=denominator)


_PAIR = (slice(None, -1), slice(1, None))


def _teacher_shape(teacher: Tensor | SparseLogits) -> torch.Size:
    return torch.Size([*teacher.rest.shape, teacher.size]) if isinstance(teacher, SparseLogits) else teacher.shape


def _hidden(values: Tensor, used: Tensor | None) -> Tensor:
    values = full_precision(values)
    return values if used is None else torch.where(used.unsqueeze(-1), values, 0.0)


def _at(log_probs: Tensor, classes: Tensor | None) -> Tensor:
    return log_probs if classes is None else log_probs.gather(-1, classes)


def _union(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Classes of either position of every pair, ``[..., L - 1, 2k]``, and where each stands for the first time."""
    both = torch.cat([ids[..., :-1, :], ids[..., 1:, :]], -1).sort(dim=-1).values
    fresh = torch.ones_like(both, dtype=torch.bool)
    fresh[..., 1:] = both[..., 1:] != both[..., :-1]
    return both, fresh


def _looked_up(classes: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Values of ``classes`` ``[..., m]`` among ``ids`` ``[..., k]``; -inf for those that are not there."""
    same = classes.unsqueeze(-1) == ids.unsqueeze(-2)
    return torch.where(same, values.unsqueeze(-2), -torch.inf).amax(dim=-1)
