"""Divergences between the distributions that two networks give over the same classes, row by row.

All of them work in log space and in float32 at least, accept classes that are ruled out (``-inf``) by both
sides, and are written KL(target || model). :class:`~limbeck.signals.SparseLogits` teachers are accepted by
every function here except :func:`entropy`: the ``k`` kept classes and the rest of the vocabulary, as one
outcome, make a distribution over ``k + 1`` outcomes, and the student is summed up to the same outcomes. At
temperature 1 that is a lower bound of the dense divergence; at another temperature both sides are first
summed up and then tempered, with the rest as one outcome.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import (
    check_choice,
    check_row_mask,
    check_same_shape,
    expected,
    log_ratio_expected,
    log_sum_exp,
    scale_rows,
    temper,
)
from limbeck.losses.reduce import hide_masked, reduce_rows
from limbeck.signals import SparseLogits


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    per_row: str = "sum",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(teacher || student): the classic distillation loss; the student must cover the teacher's classes.

    Formula: ``T^2 sum_c p_c (log p_c - log q_c)``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015
    Batch-wise: no

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]`` or sparse.
        temperature: T of both sides; a number, or one per row ``[...]``.
        teacher_temperature: of the teacher alone, if it differs.
        scale: ``squared`` multiplies by the student's T^2, so that the gradient keeps its size when T
            changes; ``none`` does not.
        per_row: ``sum`` over the classes is the divergence. ``mean`` divides it by C: what torch's ``KLDivLoss`` gave
            with its old default ``size_average``, so that weights from code of that time can be taken over.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats; ``[...]`` or a scalar. Infinite where the student rules out (``-inf``) a class that the teacher
        allows.

    Raises:
        UserError: shapes that differ, a temperature that is not positive, an unknown scale, ``per_row`` or reduction.

    :func:`reverse_kl` commits to the teacher's modes instead; :func:`jeffreys` is the sum of both;
    :func:`jensen_shannon` is bounded. :func:`soft_cross_entropy` has the same gradient and another value.
    """
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    check_choice("per_row", per_row, ("sum", "mean"))
    values = scale_rows(log_ratio_expected(teacher, student), temperature, scale)
    values = values / student_logits.shape[-1] if per_row == "mean" else values
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(student || teacher): the student may drop what it cannot model and commits to the teacher's modes.

    Formula: ``T^2 sum_c q_c (log q_c - log p_c)``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, ICLR 2024
    Batch-wise: no

    Arguments, errors and result as for :func:`forward_kl`, its mirror. Unbounded where the teacher is very
    sure.
    """
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    values = scale_rows(log_ratio_expected(student, teacher), temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def jeffreys(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """The sum (not the mean) of forward and reverse KL: symmetric, unbounded.

    Formula: ``T^2 [KL(p || q) + KL(q || p)]``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Jeffreys, An Invariant Form for the Prior Probability in Estimation Problems, 1946
    Batch-wise: no

    Arguments, errors and result as for :func:`forward_kl`. For weights of the two directions that differ from
    row to row, add :func:`forward_kl` and :func:`reverse_kl` with a ``weight`` each.
    """
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    both = log_ratio_expected(teacher, student) + log_ratio_expected(student, teacher)
    values = scale_rows(both, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence: bounded, and between the two directions of KL.

    Formula: ``T^2 [beta KL(p || m) + (1 - beta) KL(q || m)]``, ``m = beta p + (1 - beta) q``, p teacher, q
        student
    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024
    Batch-wise: no

    ``beta`` lies strictly between 0 and 1. Divided by ``beta`` it tends to forward KL as beta falls to 0,
    divided by ``1 - beta`` to reverse KL as beta rises to 1; at the ends themselves it is 0, which is why
    they are refused. Where the two sides do not overlap its gradient vanishes. Other arguments, errors and
    result as for :func:`forward_kl`.
    """
    if not 0 < beta < 1:
        raise UserError("beta", beta, "a number strictly between 0 and 1", "the limits are forward_kl and reverse_kl")
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    middle = _log_mixture(teacher, student, beta)
    both = beta * log_ratio_expected(teacher, middle) + (1 - beta) * log_ratio_expected(student, middle)
    values = scale_rows(both, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def skewed_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    alpha: float = 0.1,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Forward KL against a student mixed with some of the teacher: bounded by ``-log(alpha)``.

    Formula: ``T^2 KL(p || alpha p + (1 - alpha) q)``, p teacher, q student
    Source: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, ICML 2024
    Batch-wise: no

    ``alpha`` in [0, 1); 0 is :func:`forward_kl`. Other arguments, errors and result as there.
    """
    _check_skew(alpha)
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    values = log_ratio_expected(teacher, _log_mixture(teacher, student, alpha))
    values = scale_rows(values, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def skewed_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    alpha: float = 0.1,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "squared",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Reverse KL against a teacher that is mixed with some of the student: bounded by ``-log(alpha)``.

    Formula: ``T^2 KL(q || alpha q + (1 - alpha) p)``, p teacher, q student
    Source: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, ICML 2024
    Batch-wise: no

    ``alpha`` in [0, 1); 0 is :func:`reverse_kl`. Other arguments, errors and result as there.
    """
    _check_skew(alpha)
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    values = log_ratio_expected(student, _log_mixture(student, teacher, alpha))
    values = scale_rows(values, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def total_variation(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "none",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Half the L1 distance between the probabilities: bounded by 1, without gradient where the two sides tie.

    Formula: ``1/2 sum_c |p_c - q_c|``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, ACL 2023
    Batch-wise: no

    Arguments, errors and result as for :func:`forward_kl`, but ``scale`` is ``none`` unless asked: this
    distance is of first order in the logits, so T^2 is not the factor that keeps its gradient.
    """
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    values = 0.5 * (teacher.exp() - student.exp()).abs().sum(dim=-1)
    values = scale_rows(values, temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    scale: str = "none",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the student under the teacher's distribution, each with its own temperature.

    Formula: ``-sum_c p_c log q_c``, ``p = softmax(teacher / T_teacher)``, ``q = softmax(student / T)``
    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015
    Batch-wise: no

    It is :func:`forward_kl` (with ``scale="none"``) plus the entropy of the teacher, which is constant for
    the student: same gradient, another value, not zero at student = teacher. ``scale`` is ``none`` unless
    asked, as published recipes with separate temperatures (a sharp teacher, a smooth student) use it. Other
    arguments, errors and result as for :func:`forward_kl`. For hard labels see
    :func:`~limbeck.losses.classification.cross_entropy`.
    """
    student, teacher, mask = _log_probabilities(student_logits, teacher_logits, temperature, teacher_temperature, mask)
    values = scale_rows(expected(teacher.exp(), -student), temperature, scale)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def entropy(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Entropy of one network's distribution, in nats: a gate, a confidence penalty (negated) or a sharpener.

    Formula: ``-sum_c q_c log q_c``, ``q = softmax(logits / T)``
    Source: Shannon, A Mathematical Theory of Communication, 1948
    Batch-wise: no

    Args:
        logits: ``[..., C]``.
        temperature: T; a number, or one per row ``[...]``.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.
    """
    mask = check_row_mask(mask, logits.shape[:-1])
    log_probs = temper(hide_masked(logits, mask), temperature).log_softmax(dim=-1)
    values = expected(log_probs.exp(), -log_probs)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def coarsen(student_logits: Tensor, teacher: SparseLogits, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides over the teacher's ``k`` kept classes and the rest, ``[..., k + 1]``.

    The student's rest is summed from its members, never as one minus the others. With ``k = size`` there is
    no rest.
    """
    if student_logits.shape != (*teacher.rest.shape, teacher.size):
        given = [*teacher.rest.shape, teacher.size]
        raise UserError(
            "teacher_logits",
            f"sparse logits of shape {given}",
            f"{list(student_logits.shape)}, as the student",
        )
    student = hide_masked(student_logits, mask).log_softmax(dim=-1)
    values = hide_masked(teacher.values, mask)
    indices = teacher.indices if mask is None else torch.where(mask.unsqueeze(-1), teacher.indices, 0)
    kept = student.gather(-1, indices)
    if values.shape[-1] == teacher.size:
        return kept, values
    others = log_sum_exp(student.scatter(-1, indices, -torch.inf))
    rest = hide_masked(teacher.rest, mask, dims=0)
    return torch.cat([kept, others.unsqueeze(-1)], -1), torch.cat([values, rest.unsqueeze(-1)], -1)


def _log_probabilities(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tempered log-probabilities of student and teacher over the same outcomes, and the checked mask."""
    mask = check_row_mask(mask, student_logits.shape[:-1])
    if isinstance(teacher_logits, SparseLogits):
        student, teacher = coarsen(student_logits, teacher_logits, mask)
    else:
        check_same_shape(student_logits, teacher_logits)
        student, teacher = hide_masked(student_logits, mask), hide_masked(teacher_logits, mask)
    if teacher_temperature is None:
        teacher_temperature = temperature
    # The softmax also renormalises a sparse teacher whose cached values were rounded.
    student = temper(student, temperature).log_softmax(dim=-1)
    return student, temper(teacher, teacher_temperature, "teacher_temperature").log_softmax(dim=-1), mask


def _log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """``log(share * exp(first) + (1 - share) * exp(second))``; -inf, without gradient, where both are."""
    if share == 0:
        return second
    first, second = first + math.log(share), second + math.log1p(-share)
    dead = torch.isneginf(first) & torch.isneginf(second)
    mixed = torch.logaddexp(torch.where(dead, 0.0, first), torch.where(dead, 0.0, second))
    return torch.where(dead, -torch.inf, mixed)


def _check_skew(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise UserError("alpha", alpha, "0 (no skew) up to, and not including, 1")
