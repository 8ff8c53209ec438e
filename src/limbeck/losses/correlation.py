"""Losses that ask for agreement up to scale and shift: Pearson and rank correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape, check_temperature, scale_rows, temper
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows


def pearson_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One minus the Pearson correlation of two rows of anything: logits, scores, features.

    Formula: ``1 - cov(s, t) / (std(s) std(t))`` over the last axis
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    Batch-wise: no

    Args:
        student, teacher: ``[..., C]``, finite.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Values in [0, 2]. A constant row correlates with nothing: 1 without gradient, and 0 if both rows are
        constant.

    :func:`spearman` compares ranks only; :func:`dist` applies this to probabilities, along classes and along
    the batch.
    """
    check_same_shape(student, teacher, "teacher")
    mask = check_row_mask(mask, student.shape[:-1])
    values = _decorrelation(hide_masked(student, mask), hide_masked(teacher, mask), dim=-1).sum(dim=-1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def spearman(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One minus the rank correlation of two rows, with ranks made differentiable by pairwise sigmoids.

    Formula: ``1 - pearson(R(s), R(t))``, ``R(x)_i = 1/2 + sum_j sigmoid((x_i - x_j) / T)``
    Source: Qin, Liu and Li, A general approximation framework for direct optimization of information
        retrieval measures, 2010
    Batch-wise: no

    Args:
        student, teacher: ``[..., C]``, finite. The cost is C^2 in time and memory: for lists, not for
            vocabularies.
        temperature: T, in the units of the scores. Small: exact ranks, with a gradient only between near
            neighbours; large: the ranks become linear in the scores and this tends to
            :func:`pearson_distance`.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Values in [0, 2]; constant rows as in :func:`pearson_distance`.
    """
    check_same_shape(student, teacher, "teacher")
    mask = check_row_mask(mask, student.shape[:-1])
    student_ranks = soft_ranks(hide_masked(student, mask), temperature=temperature)
    teacher_ranks = soft_ranks(hide_masked(teacher, mask), temperature=temperature)
    values = _decorrelation(student_ranks, teacher_ranks, dim=-1).sum(dim=-1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def soft_ranks(scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Differentiable ranks, from 1 (smallest) to C; ties share their mean rank. See :func:`spearman`."""
    check_temperature(temperature)
    scores = full_precision(scores)
    gaps = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    return 0.5 + torch.sigmoid(gaps / temperature).sum(dim=-1)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float | Tensor = 1.0,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """DIST: probabilities that correlate with a stronger teacher's, along the classes and along the batch.

    Formula: ``T^2 [beta mean_b d(q_b:, p_b:) + gamma mean_c d(q_:c, p_:c)]``, ``d = 1 - pearson``, p teacher,
        q student
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    Batch-wise: yes, the second term correlates each class over all rows; gather the rows of all processes
        first

    The sum of :func:`dist_inter` and :func:`dist_intra`; only the first may be split into micro-batches.

    Args:
        student_logits, teacher_logits: ``[..., C]``.
        inter_weight, intra_weight: the paper's beta and gamma (its alpha weighs the cross-entropy beside this
            loss).
        temperature: T of both sides.
        scale: ``squared`` (as released) or ``none``.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`. Masked rows are
            left out of the correlations, as if they were not in the batch.
    """
    inter = dist_inter(
        student_logits, teacher_logits, temperature=temperature, scale=scale, mask=mask, reduction="none"
    )
    intra = dist_intra(
        student_logits, teacher_logits, temperature=temperature, scale=scale, mask=mask, reduction="none"
    )
    values = inter_weight * inter + intra_weight * intra
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def dist_inter(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """The inter-class part of DIST: every row's probabilities correlate with the teacher's for that row.

    Formula: ``T^2 [1 - pearson(q_b:, p_b:)]``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    Batch-wise: no

    Arguments as for :func:`dist`. :func:`pearson_distance` is the same on logits as they are.
    """
    student, teacher, mask = _probabilities(student_logits, teacher_logits, temperature, mask)
    values = scale_rows(_decorrelation(student, teacher, dim=-1).sum(dim=-1), temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def dist_intra(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """The intra-class part of DIST: a class's probabilities over the batch correlate with the teacher's.

    Formula: ``T^2 mean_c [1 - pearson(q_:c, p_:c)]``, ``p = softmax(teacher / T)``, ``q = softmax(student /
        T)``
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    Batch-wise: yes, each class is correlated over all rows; gather the rows of all processes first

    Arguments as for :func:`dist`. A row's own value is its share of the correlations, made so that the mean
    over the rows is the loss; all leading axes together are the batch.
    """
    student, teacher, mask = _probabilities(student_logits, teacher_logits, temperature, mask)
    rows = student.shape[:-1]
    keep = torch.ones(rows, dtype=torch.bool, device=student.device) if mask is None else mask
    student, teacher = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    shares = _decorrelation(student, teacher, dim=0, keep=keep.reshape(-1, 1)).mean(dim=-1)
    values = scale_rows(shares.reshape(rows) * keep.sum(), temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _probabilities(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    check_same_shape(student_logits, teacher_logits)
    if student_logits.shape[-1] < 2:
        raise UserError("student_logits", "1 class", "at least 2 classes: a single one has no correlation")
    mask = check_row_mask(mask, student_logits.shape[:-1])
    student = temper(hide_masked(student_logits, mask), temperature).softmax(dim=-1)
    return student, temper(hide_masked(teacher_logits, mask), temperature).softmax(dim=-1), mask


def _decorrelation(first: Tensor, second: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Elements whose sum over ``dim`` is one minus the Pearson correlation of ``first`` and ``second``.

    They are half the squared differences of the unit vectors, not one minus their product: exact, and without
    gradient, at a match. If one side is constant the sum is 1, if both are it is 0.
    """
    one, one_varies = _unit(first, dim, keep)
    two, two_varies = _unit(second, dim, keep)
    count = first.shape[dim] if keep is None else keep.sum(dim=dim, keepdim=True).clamp_min(1)
    alone = (one_varies ^ two_varies).to(one.dtype) / count
    shares = 0.5 * ((one - two).square() + alone)
    return shares if keep is None else torch.where(keep, shares, 0.0)


def _unit(values: Tensor, dim: int, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Centred unit vectors along ``dim`` and whether they vary; zero, without gradient, where they do not."""
    if keep is None:
        centred = values - values.mean(dim=dim, keepdim=True)
    else:
        count = keep.sum(dim=dim, keepdim=True).clamp_min(1)
        values = torch.where(keep, values, 0.0)
        centred = torch.where(keep, values - values.sum(dim=dim, keepdim=True) / count, 0.0)
    # Scaled by the largest entry first: the squares of small probabilities would underflow.
    peak = centred.detach().abs().amax(dim=dim, keepdim=True)
    rounding = 8 * torch.finfo(values.dtype).eps * values.detach().abs().amax(dim=dim, keepdim=True)
    varies = peak > rounding
    scaled = torch.where(varies, centred, 1.0) / torch.where(varies, peak, 1.0)
    unit = scaled * scaled.square().sum(dim=dim, keepdim=True).rsqrt()
    return torch.where(varies, unit, 0.0), varies
