"""Divergences estimated from single tokens: what both networks said of the token that was sampled.

A full divergence needs both distributions over the whole vocabulary. Where only the log-probabilities of the written
tokens are known, or kept, these give its value without bias, if the text was written by the network that the
estimator names (its tokens drawn from the very distribution that is compared: same temperature, no top-p cut).
On any other text they estimate nothing.

With x drawn from q and ``r = p(x) / q(x)``, every f-divergence ``D = E_q[f(r)]``, ``f(1) = 0``, has two forms:

- ``k1 = f(r)``: unbiased, of either sign for a KL;
- ``k3 = f(r) - f'(1) (r - 1)``: unbiased too, since ``E_q[r] = 1``, never negative, and usually of less variance.

(Schulman's names; his k2 is biased and not offered.) What differentiating such a value gives is another matter:

- text of the teacher (forward KL): the sampler does not depend on the student, so the gradient of either value is the
  divergence's, without bias; that of k3 vanishes at student = teacher in every sample, that of k1 on average only;
- text of the student (reverse KL): differentiating k1 gives ``grad log q(x)``, which is zero on average and trains
  nothing; differentiating k3 gives the gradient of the FORWARD KL on average. So neither is done: the value is k1 or
  k3, and the gradient is the score-function one, ``(f(r) - r f'(r)) grad log q(x)`` with the bracket a constant,
  which is that of the divergence, without bias.

Prefixes count as given: what a token changes in the distributions behind it is no part of the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_choice, check_row_mask, log_sum_exp
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows
from limbeck.signals import SparseLogits

FORMS = ("k1", "k3")
# By Markov's inequality a sample whose ratio is larger has a probability below exp(-40): it is never drawn.
_LARGEST_LOG_RATIO = 40.0


def sampled_forward_kl(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    form: str = "k3",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(teacher || student) from tokens that the teacher sampled; unbiased in value and gradient.

    Formula: ``k1 = log p(x) - log q(x)``, ``k3 = k1 + q(x) / p(x) - 1``, x from p (teacher), q student
    Source: Schulman, Approximating KL Divergence, 2020
    Batch-wise: no

    Args:
        student_log_probs, teacher_log_probs: ``[...]``, log-probabilities of the tokens of a text that the teacher
            wrote.
        form: ``k1`` (its gradient is that of cross-entropy on the text) or ``k3``.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats; ``[...]`` or a scalar. k1 can be negative.

    Raises:
        UserError: shapes that differ, an unknown form.

    :func:`sampled_reverse_kl` is for text of the student. With both distributions at hand
    :func:`~limbeck.losses.divergences.forward_kl` is exact.
    """
    check_choice("form", form, FORMS)
    student, teacher, mask = _of_tokens(student_log_probs, teacher_log_probs, mask)
    values = teacher - student
    if form == "k3":
        values = values + _ratio(student - teacher) - 1
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def sampled_reverse_kl(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    form: str = "k3",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(student || teacher) from tokens that the student sampled; unbiased in value and gradient.

    Formula: ``k1 = log q(x) - log p(x)``, ``k3 = k1 + p(x) / q(x) - 1``, x from q (student), p teacher; gradient
        ``(log q(x) - log p(x)) grad log q(x)``
    Source: Schulman, Approximating KL Divergence, 2020
    Batch-wise: no

    The gradient is not that of the value, which would be zero on average for k1 and that of the forward KL for k3;
    see the module. The same for both forms, it vanishes in every sample at student = teacher.

    Args:
        student_log_probs, teacher_log_probs: ``[...]``, log-probabilities of the tokens of a text that the student
            wrote, with its present weights.
        form, mask, weight, reduction, denominator: as for :func:`sampled_forward_kl`, like result and errors.

    :func:`~limbeck.losses.divergences.reverse_kl` is exact, with much less variance.
    """
    check_choice("form", form, FORMS)
    student, teacher, mask = _of_tokens(student_log_probs, teacher_log_probs, mask)
    gap = student - teacher
    values = gap + _ratio(-gap) - 1 if form == "k3" else gap
    values = _with_score(values, gap, student)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def sampled_jensen_shannon(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    beta: float = 0.5,
    samples: str = "student",
    form: str = "k3",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence from tokens that one side sampled; unbiased in value and gradient.

    Formula: ``f(r) = beta r log(r / m) - (1 - beta) log m``, ``m = beta r + 1 - beta``, ``r = p(x) / q(x)``, x from q
        (student), p teacher; gradient ``-(1 - beta) log(m) grad log q(x)``. On the teacher's text the two change
        places, beta and 1 - beta too, and the gradient is the value's.
    Source: the f-divergence form of Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024
    Batch-wise: no

    Since ``f'(1) = 0``, k1 and k3 are one and the same here: never negative.

    Args:
        beta: strictly between 0 and 1; as for :func:`~limbeck.losses.divergences.jensen_shannon`.
        samples: ``student`` or ``teacher``: who wrote the text.
        student_log_probs, teacher_log_probs, form, mask, weight, reduction, denominator: as for
            :func:`sampled_forward_kl`, like result and errors.
    """
    check_choice("form", form, FORMS)
    check_choice("samples", samples, ("student", "teacher"))
    if not 0 < beta < 1:
        raise UserError("beta", beta, "a number strictly between 0 and 1")
    student, teacher, mask = _of_tokens(student_log_probs, teacher_log_probs, mask)
    gap, share = (teacher - student, beta) if samples == "student" else (student - teacher, 1 - beta)
    gap = gap.clamp_max(_LARGEST_LOG_RATIO)
    middle = torch.logaddexp(gap + math.log(share), torch.full_like(gap, math.log1p(-share)))
    # r log r = 0 at r = 0.
    ratio = gap.exp()
    first = torch.where(ratio > 0, ratio * torch.where(ratio > 0, gap - middle, 0.0), 0.0)
    values = share * first - (1 - share) * middle
    if samples == "student":
        values = _with_score(values, -(1 - share) * middle, student)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Log-probability ``[...]`` of ``tokens`` ``[...]`` under ``softmax(logits / T)``, logits ``[..., V]``; 0 where
    ``mask`` is False."""
    mask = check_row_mask(mask, logits.shape[:-1])
    if tokens.shape != logits.shape[:-1]:
        raise UserError("tokens", f"shape {list(tokens.shape)}", f"one per row, {list(logits.shape[:-1])}")
    if mask is not None:
        tokens = torch.where(mask, tokens, 0)
    scaled = hide_masked(logits, mask) / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(dim=-1)
    return chosen if mask is None else torch.where(mask, chosen, 0.0)


def keep_top(teacher: Tensor | SparseLogits, k: int) -> SparseLogits:
    """A teacher's ``k`` most probable classes with the exact mass of the rest.

    A divergence on them is one over ``k + 1`` outcomes: at temperature 1 never more than the dense one, and exact in
    what it says. (A sum over the k classes alone, without the rest, is no divergence: it can be negative, and its
    gradient does not vanish at student = teacher. It is not offered.)

    Raises:
        UserError: ``k`` out of range, or more than a sparse teacher kept.
    """
    if not isinstance(teacher, SparseLogits):
        return SparseLogits.from_dense(teacher, k)
    kept = teacher.values.shape[-1]
    if not 1 <= k <= kept:
        raise UserError("k", k, f"1 to {kept}, what the teacher's signals hold")
    if k == kept:
        return teacher
    values, place = teacher.values.sort(dim=-1, descending=True)
    indices = teacher.indices.gather(-1, place)
    rest = torch.cat([full_precision(values[..., k:]), full_precision(teacher.rest).unsqueeze(-1)], -1)
    return SparseLogits(values[..., :k], indices[..., :k], log_sum_exp(rest), teacher.size)


def _of_tokens(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if student.shape != teacher.shape:
        raise UserError("teacher_log_probs", f"shape {list(teacher.shape)}", f"the student's, {list(student.shape)}")
    mask = check_row_mask(mask, student.shape)
    return hide_masked(student, mask, dims=0), hide_masked(teacher, mask, dims=0), mask


def _ratio(gap: Tensor) -> Tensor:
    return gap.clamp_max(_LARGEST_LOG_RATIO).exp()


def _with_score(values: Tensor, coefficient: Tensor, log_probs: Tensor) -> Tensor:
    """``values`` with the gradient ``coefficient * grad log_probs``."""
    # Not "log_probs - log_probs.detach()": that is NaN where the student rules the token out.
    anchored = torch.where(torch.isfinite(log_probs), log_probs, 0.0)
    return values.detach() + coefficient.detach() * (anchored - anchored.detach())
