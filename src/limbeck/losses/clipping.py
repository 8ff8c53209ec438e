"""KL over a part of the classes: those that a window of the teacher's cumulative probability keeps.

The teacher's classes are ranked by probability; class k covers the stretch from ``before_k`` to ``upto_k`` of the
cumulative mass. A window [lower, upper] keeps the classes whose stretch meets it, both sides are renormalised over
what is kept, and the rest is not compared at all. With fixed numbers this is top-k, top-p or a band of quantiles; with
soft edges the bounds can be learned. A divergence over all classes with the rest as one outcome is
:func:`~limbeck.losses.divergences.forward_kl` of sparse logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, log_ratio_expected
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows
from limbeck.signals import SparseLogits


class Ranked(NamedTuple):
    """The teacher's most probable classes, all ``[..., K]``: log-probability, class, cumulative probability before and
    with it, and whether it is kept by every window (the first, and the label)."""

    log_probs: Tensor
    indices: Tensor
    before: Tensor
    upto: Tensor
    fixed: Tensor


def clipped_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    lower: Tensor | float = 0.0,
    upper: Tensor | float = 1.0,
    k: int = 512,
    softness: float = 0.0,
    label: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(teacher || student) over the classes that a window of the teacher's cumulative probability keeps.

    Formula: ``sum_k p~_k (log p~_k - log q~_k)``, ``x~ = m x / sum(m x)``; hard ``m_k = [upto_k > lower][before_k <
        upper]``, soft ``m_k = sigmoid((upto_k - lower) / s) sigmoid((upper - before_k) / s)``
    Source: Multi-Granularity Semantic Revision for Large Language Model Distillation, 2024 (its form left open)
    Batch-wise: no

    Args:
        student_logits: ``[..., V]``.
        teacher_logits: ``[..., V]`` or sparse, of which the kept classes alone are used.
        lower, upper: numbers in [0, 1], or one per row ``[...]``, which get a gradient if ``softness`` is positive.
            ``upper=0.95`` is nucleus (top-p) KL.
        k: the most probable classes are looked at; with ``upper=1`` this is top-k KL.
        softness: s, width of the window's edges in probability; 0 for hard ones.
        label: ``[...]``, a class that is always kept, as the most probable one is. Where it is not among the k it takes
            the place of the last of them; a sparse teacher has no value for it then, and it is left out.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats. Zero where both agree on the kept classes, whatever the student says of the others: add a term on the
        labels, or the student's mass may flow away.

    Raises:
        UserError: shapes that differ, ``k`` or ``softness`` out of range.
    """
    mask = check_row_mask(mask, student_logits.shape[:-1])
    if mask is not None:
        lower, upper = (
            torch.where(mask, bound, 0.5) if isinstance(bound, Tensor) else bound for bound in (lower, upper)
        )
    ranked = ranked_classes(teacher_logits, k, label=label, mask=mask)
    return windowed_kl(
        student_logits, ranked, window(ranked, lower, upper, softness), mask=mask, weight=weight, reduction=reduction,
        denominator=denominator,
    )  # fmt: skip


def ranked_classes(
    teacher_logits: Tensor | SparseLogits, k: int, *, label: Tensor | None = None, mask: Tensor | None = None
) -> Ranked:
    """The teacher's ``k`` most probable classes (fewer if there are no more), falling; see :func:`clipped_kl`."""
    if k < 1:
        raise UserError("k", k, "1 or more")
    if isinstance(teacher_logits, SparseLogits):
        log_probs = hide_masked(teacher_logits.values, mask)[..., :k]
        indices = teacher_logits.indices[..., :k]
        indices = indices if mask is None else torch.where(mask.unsqueeze(-1), indices, 0)
        whole = None
    else:
        whole = hide_masked(teacher_logits, mask).log_softmax(dim=-1)
        log_probs, indices = whole.topk(min(k, whole.shape[-1]), dim=-1)
    fixed = torch.zeros_like(indices, dtype=torch.bool)
    fixed[..., 0] = True
    if label is not None:
        wanted = (label if mask is None else torch.where(mask, label, 0)).unsqueeze(-1)
        if whole is not None:
            missing = (indices != wanted).all(dim=-1, keepdim=True)
            last = torch.arange(indices.shape[-1], device=indices.device) == indices.shape[-1] - 1
            indices = torch.where(missing & last, wanted, indices)
            log_probs = whole.gather(-1, indices)
        fixed = fixed | (indices == wanted)
    mass = log_probs.exp()
    upto = mass.cumsum(dim=-1)
    return Ranked(log_probs, indices, upto - mass, upto, fixed)


def window(ranked: Ranked, lower: Tensor | float, upper: Tensor | float, softness: float = 0.0) -> Tensor:
    """Log of how far every ranked class is kept, ``[..., K]``: 0 is wholly, ``-inf`` not at all (hard edges only)."""
    if softness < 0:
        raise UserError("softness", softness, "0 or a positive number")
    low, high = (bound.unsqueeze(-1) if isinstance(bound, Tensor) else bound for bound in (lower, upper))
    if softness:
        edges = functional.logsigmoid((ranked.upto - low) / softness)
        edges = edges + functional.logsigmoid((high - ranked.before) / softness)
        return torch.where(ranked.fixed, 0.0, edges)
    inside = (ranked.upto > low) & (ranked.before < high) | ranked.fixed
    return torch.zeros_like(ranked.log_probs).masked_fill(~inside, -torch.inf)


def kept_mass(ranked: Ranked, log_window: Tensor) -> Tensor:
    """Probability of the teacher inside the window, ``[...]``; classes behind the k-th count as outside."""
    return (ranked.log_probs + log_window).exp().sum(dim=-1)


def windowed_kl(
    student_logits: Tensor,
    ranked: Ranked,
    log_window: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """:func:`clipped_kl` for classes that were ranked, and a window that was made, before.

    Formula: as :func:`clipped_kl`
    Source: as :func:`clipped_kl`
    Batch-wise: no
    """
    rows = student_logits.shape[:-1]
    if ranked.indices.shape[:-1] != rows:
        given = list(ranked.indices.shape[:-1])
        raise UserError("teacher_logits", f"rows {given}", f"the student's, {list(rows)}")
    mask = check_row_mask(mask, rows)
    chosen = full_precision(hide_masked(student_logits, mask)).gather(-1, ranked.indices)
    log_window = hide_masked(log_window, mask)
    teacher = (ranked.log_probs + log_window).log_softmax(dim=-1)
    values = log_ratio_expected(teacher, (chosen + log_window).log_softmax(dim=-1))
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)
