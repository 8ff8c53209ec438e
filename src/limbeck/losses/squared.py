"""Squared error between distributions: bounded, so that one wrong label or one sure teacher cannot take over.

``per_row`` says how the classes of one row become its value: ``mean`` over the classes (with ``reduction="mean"`` the
mean over batch and classes, which is what most code calls MSE) or ``sum`` (the Brier score of the literature, and of
:func:`limbeck.measure.classification`). The two differ by the factor C, so learning rates of the one do not fit the
other.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.losses._inputs import check_labels, check_row_mask, check_same_shape, temper
from limbeck.losses.classification import IGNORE_INDEX
from limbeck.losses.features import reduce_elements
from limbeck.losses.reduce import hide_masked, reduce_rows


def probability_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared difference of the two networks' probabilities.

    Formula: ``mean_c (q_c - p_c)^2``, ``q = softmax(student / T)``, ``p = softmax(teacher / T)``; with
        ``per_row="sum"`` the sum over the classes
    Source: Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021 (T = 1, mean)
    Batch-wise: no

    Args:
        student_logits, teacher_logits: ``[..., C]``.
        temperature: T of both sides; a number, or one per row ``[...]``. There is no factor T^2.
        per_row: ``mean`` or ``sum`` over the classes.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: unequal shapes, a temperature that is not positive, an unknown ``per_row`` or ``reduction``.

    Its gradient vanishes where the student is sure, rightly or wrongly; :func:`~limbeck.losses.divergences.forward_kl`
    has one there. For squared error of the logits themselves use :func:`~limbeck.losses.features.mse`.
    """
    check_same_shape(student_logits, teacher_logits)
    mask = check_row_mask(mask, student_logits.shape[:-1])
    student, teacher = (
        temper(hide_masked(logits, mask), temperature).softmax(dim=-1) for logits in (student_logits, teacher_logits)
    )
    values = reduce_elements((student - teacher).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def brier(
    student_logits: Tensor,
    target: Tensor,
    *,
    per_row: str = "mean",
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared difference of the student's probabilities from the label: a proper score that stays bounded.

    Formula: ``mean_c (q_c - y_c)^2``, ``q = softmax(student)``, ``y`` one-hot (or given probabilities); with
        ``per_row="sum"`` the sum over the classes
    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950 (sum)
    Batch-wise: no

    Args:
        student_logits: ``[..., C]``.
        target: integer labels ``[...]``, or probabilities ``[..., C]``.
        per_row: ``mean`` or ``sum`` over the classes.
        ignore_index: integer labels of this value do not count, neither in the sum nor in the default denominator.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: a label outside ``[0, C)``, a target of the wrong shape, an unknown ``per_row`` or ``reduction``.

    Under wrong labels it is gentler than :func:`~limbeck.losses.classification.cross_entropy`, and slower at the
    start. For a teacher's probabilities as the target use :func:`probability_mse`.
    """
    classes = student_logits.shape[-1]
    mask = check_row_mask(mask, student_logits.shape[:-1])
    if target.is_floating_point():
        check_same_shape(student_logits, target, "target")
        truth = hide_masked(target, mask)
    else:
        target, mask = check_labels(target, student_logits.shape[:-1], classes, mask=mask, ignore_index=ignore_index)
        truth = one_hot(target, classes)
    student = hide_masked(student_logits, mask).softmax(dim=-1)
    values = reduce_elements((student - truth.to(student.dtype)).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)
