"""Cross-entropy on labels, and logit distillation that knows the label or the spread of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import (
    check_labels,
    check_row_mask,
    check_same_shape,
    expected,
    log_ratio_expected,
    log_sum_exp,
    scale_rows,
    temper,
)
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows

IGNORE_INDEX = -100


def cross_entropy(
    student_logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy on hard or soft labels, with label smoothing.

    Formula: ``-sum_c [(1 - e) y_c + e / C] log q_c``, ``q = softmax(student)``, ``y`` the label, ``e`` the
        smoothing
    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016 (smoothing)
    Batch-wise: no

    Args:
        student_logits: ``[..., C]``.
        target: integer labels ``[...]``, or probabilities ``[..., C]`` (mixup, annotator votes).
        label_smoothing: e in [0, 1); spread over the classes whose logit is not ``-inf``.
        ignore_index: integer labels of this value do not count, neither in the sum nor in the default
            denominator.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: a label outside ``[0, C)``, a target of the wrong shape, smoothing outside [0, 1).

    For a teacher's logits as the target use :func:`~limbeck.losses.divergences.soft_cross_entropy`.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError("label_smoothing", label_smoothing, "0 up to, and not including, 1")
    classes = student_logits.shape[-1]
    mask = check_row_mask(mask, student_logits.shape[:-1])
    if target.is_floating_point():
        check_same_shape(student_logits, target, "target")
        log_probs = hide_masked(student_logits, mask).log_softmax(dim=-1)
        values = expected(hide_masked(target, mask), -log_probs)
    else:
        target, mask = check_labels(target, student_logits.shape[:-1], classes, mask=mask, ignore_index=ignore_index)
        log_probs = hide_masked(student_logits, mask).log_softmax(dim=-1)
        values = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if label_smoothing > 0:
        live = (~torch.isneginf(log_probs)).to(log_probs.dtype)
        uniform = expected(live / live.sum(dim=-1, keepdim=True), -log_probs)
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor = 4.0,
    scale: str = "squared",
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Decoupled distillation (DKD): the part on the label and the part among the others, weighed apart.

    Formula: ``T^2 [alpha KL(b_p || b_q) + beta KL(p' || q')]``, ``b = (p_y, 1 - p_y)``, ``p'`` = p without y,
        renormalised
    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022
    Batch-wise: no

    Plain :func:`~limbeck.losses.divergences.forward_kl` is alpha = 1 with beta = the teacher's ``1 - p_y``,
    row by row: where the teacher is sure, it mutes the second part, and this loss does not. Everything stays
    in log space, with the probability of the other classes summed from its members, so half precision and
    gaps of 10^4 are safe.

    Args:
        student_logits, teacher_logits: ``[..., C]``, C at least 2.
        target: integer labels ``[...]``.
        alpha, beta: weights of the two parts (the paper uses 1 and 2 to 8).
        temperature: T of both sides; a number, or one per row ``[...]``.
        scale: ``squared`` (as published) or ``none``.
        ignore_index: rows with this label do not count.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: shapes that differ, fewer than 2 classes, a label outside ``[0, C)``.
    """
    check_same_shape(student_logits, teacher_logits)
    classes = student_logits.shape[-1]
    if classes < 2:
        raise UserError("student_logits", f"{classes} class", "at least 2 classes: there must be one besides the label")
    rows = student_logits.shape[:-1]
    target, mask = check_labels(target, rows, classes, mask=check_row_mask(mask, rows), ignore_index=ignore_index)
    index = target.unsqueeze(-1)
    student = temper(hide_masked(student_logits, mask), temperature)
    teacher = temper(hide_masked(teacher_logits, mask), temperature)
    target_part = log_ratio_expected(_label_or_not(teacher, index), _label_or_not(student, index))
    other_part = log_ratio_expected(_without_label(teacher, index), _without_label(student, index))
    values = scale_rows(alpha * target_part + beta * other_part, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def standardised_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    unbiased: bool = False,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(teacher || student) of standardised logits: the student keeps its own mean and spread.

    Formula: ``T^2 KL(softmax(Z(teacher) / T) || softmax(Z(student) / T))``, ``Z(z) = (z - mean(z)) / std(z)``
    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024
    Batch-wise: no

    Zero whenever the two rows of logits differ by a positive affine map. The published recipe multiplies it
    by 9. Arguments as for :func:`logit_standardisation` and :func:`~limbeck.losses.divergences.forward_kl`,
    which compares the logits as they are.
    """
    check_same_shape(student_logits, teacher_logits)
    mask = check_row_mask(mask, student_logits.shape[:-1])
    student = logit_standardisation(hide_masked(student_logits, mask), temperature=temperature, unbiased=unbiased)
    teacher = logit_standardisation(hide_masked(teacher_logits, mask), temperature=temperature, unbiased=unbiased)
    values = log_ratio_expected(teacher.log_softmax(dim=-1), student.log_softmax(dim=-1))
    values = scale_rows(values, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def logit_standardisation(logits: Tensor, *, temperature: float | Tensor = 1.0, unbiased: bool = False) -> Tensor:
    """Z-scores of every row of logits over a temperature, ``(z - mean(z)) / (std(z) T)``. Not a loss.

    Args:
        logits: ``[..., C]``. Classes at ``-inf`` stay there and do not count in the mean and the spread.
        temperature: T; a number, or one per row ``[...]``.
        unbiased: divide the variance by ``C - 1``, as the released code does, instead of ``C``, as the paper
            does.

    Returns:
        ``[..., C]`` in float32 or float64. A row without any spread becomes zeros, with zero gradient.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024. See
        :func:`standardised_kl`.
    """
    logits = full_precision(logits)
    live = ~torch.isneginf(logits)
    count = live.sum(dim=-1, keepdim=True)
    finite = torch.where(live, logits, 0.0)
    centred = torch.where(live, finite - finite.sum(dim=-1, keepdim=True) / count.clamp_min(1), 0.0)
    variance = centred.square().sum(dim=-1, keepdim=True) / (count - int(unbiased)).clamp_min(1)
    # Rounding leaves a constant row with a spread of some units in the last place; that is no information.
    rounding = 8 * torch.finfo(logits.dtype).eps * finite.detach().abs().amax(dim=-1, keepdim=True)
    spread = variance.detach() > rounding.square()
    scores = torch.where(spread, centred * torch.where(spread, variance, 1.0).rsqrt(), 0.0)
    return torch.where(live, temper(scores, temperature), -torch.inf)


def _label_or_not(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities of the label and of all other classes together, ``[..., 2]``."""
    log_probs = logits.log_softmax(dim=-1)
    others = log_sum_exp(log_probs.scatter(-1, index, -torch.inf))
    return torch.cat([log_probs.gather(-1, index), others.unsqueeze(-1)], dim=-1)


def _without_label(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities among the other classes, with -inf at the label."""
    others = logits.scatter(-1, index, -torch.inf)
    total = log_sum_exp(others).unsqueeze(-1)
    # Where no other class is alive there is nothing to compare; 0 keeps -inf - -inf away.
    return others - torch.where(torch.isneginf(total), 0.0, total)
