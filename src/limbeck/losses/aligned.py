"""Losses between language models of different tokenizers, on spans of text that both of them end a token at."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_choice, check_row_mask, check_temperature, log_ratio_expected, temper
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows
from limbeck.signals import SparseLogits

DIVERGENCES = ("kl", "reverse_kl", "total_variation")


def universal_logit_distance(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Distance of two distributions over different vocabularies by their sorted probabilities alone.

    Formula: ``sum_i |p_(i) - q_(i)|``, ``p_(1) >= p_(2) >= ...``, the smaller vocabulary padded with zeros; ``p =
        softmax(teacher / T)``, ``q = softmax(student / T)``
    Source: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, 2024
    Batch-wise: no

    A Wasserstein distance with the same cost for every move. Unchanged by any renumbering of either vocabulary, so it
    knows how sure a model is and not of what: use it beside cross-entropy on the text, as its paper does (weight 1.5
    there).

    Args:
        student_logits: ``[..., V]``.
        teacher_logits: ``[..., W]`` of the same rows, or sparse: then the k largest are compared one by one and the
            rest as one number, which is never more than the dense distance.
        temperature: T of both.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Between 0 and 2; ``[...]`` or a scalar.

    Raises:
        UserError: other rows, a temperature that is not positive or, for a sparse teacher, not 1.

    :func:`likelihood_matching` also knows what the text was.
    """
    rows = student_logits.shape[:-1]
    given = teacher_logits.rest.shape if isinstance(teacher_logits, SparseLogits) else teacher_logits.shape[:-1]
    if given != rows:
        raise UserError("teacher_logits", f"rows {list(given)}", f"the student's, {list(rows)}")
    mask = check_row_mask(mask, rows)
    student = temper(hide_masked(student_logits, mask), temperature).softmax(dim=-1).sort(dim=-1, descending=True)[0]
    if isinstance(teacher_logits, SparseLogits):
        if isinstance(temperature, Tensor) or temperature != 1:
            raise UserError("temperature", temperature, "1, for a top-k teacher")
        values = hide_masked(teacher_logits.values, mask).exp().sort(dim=-1, descending=True)[0]
        k = min(values.shape[-1], student.shape[-1])
        teacher = values[..., :k]
        rest = hide_masked(teacher_logits.rest, mask, dims=0).exp() + values[..., k:].sum(dim=-1)
        tail = (rest - student[..., k:].sum(dim=-1)).abs()
        student = student[..., :k]
    else:
        teacher = temper(hide_masked(teacher_logits, mask), temperature).softmax(dim=-1)
        teacher = teacher.sort(dim=-1, descending=True)[0]
        k = min(student.shape[-1], teacher.shape[-1])
        # Beyond the smaller vocabulary everything is compared with zero.
        tail = student[..., k:].sum(dim=-1) + teacher[..., k:].sum(dim=-1)
        student, teacher = student[..., :k], teacher[..., :k]
    values = (student - teacher).abs().sum(dim=-1) + tail
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def likelihood_matching(
    student_log_likelihood: Tensor,
    teacher_log_likelihood: Tensor,
    *,
    temperature: float = 100.0,
    divergence: str = "kl",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Divergence of the two likelihoods of one span of text, as that of two coins: this span, or any other.

    Formula: ``D(Bernoulli(p^(1/T)), Bernoulli(q^(1/T)))``, p teacher's and q student's likelihood of the span
    Source: Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025
    Batch-wise: no

    Args:
        student_log_likelihood, teacher_log_likelihood: ``[...]``, the sums over a span's tokens, from
            :func:`span_sums`. A span of a single token with ``temperature=1`` gives the divergence of "this token or
            another".
        temperature: T; likelihoods of long spans are nearly 0, and their roots are not. The loss and its gradient
            shrink about as 1 / T.
        divergence: ``kl`` (KL(teacher || student); the released code's default is its cross-entropy, which has the same
            gradient), ``reverse_kl`` or ``total_variation``.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`; rows are spans.

    Returns:
        Nats (total variation: at most 1); ``[...]`` or a scalar. Zero where both likelihoods are the same.

    Raises:
        UserError: shapes that differ, an unknown divergence, a temperature that is not positive.
    """
    check_choice("divergence", divergence, DIVERGENCES)
    check_temperature(temperature)
    student, teacher = student_log_likelihood, teacher_log_likelihood
    if student.shape != teacher.shape:
        given = list(teacher.shape)
        raise UserError("teacher_log_likelihood", f"shape {given}", f"the student's, {list(student.shape)}")
    mask = check_row_mask(mask, student.shape)
    ours, theirs = (_coin(hide_masked(side, mask, dims=0) / temperature) for side in (student, teacher))
    if divergence == "kl":
        values = log_ratio_expected(theirs, ours)
    elif divergence == "reverse_kl":
        values = log_ratio_expected(ours, theirs)
    else:
        values = (theirs[..., 0].exp() - ours[..., 0].exp()).abs()
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def span_sums(values: Tensor, spans: Tensor, count: int) -> Tensor:
    """Sums of ``values`` ``[B, A]`` over the tokens of every span, ``[B, count]``; ``spans`` ``[B, A]`` holds their
    numbers, -1 for tokens that are left out."""
    inside = spans >= 0
    values = full_precision(torch.where(inside, values, 0.0))
    sums = values.new_zeros(len(values), count)
    return sums.scatter_add(1, spans.clamp_min(0), values)


def span_places(spans: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and last token of every span, ``[B, count]`` each; 0 and -1 where a row has no such span."""
    columns = torch.arange(spans.shape[1], device=spans.device).expand_as(spans)
    inside, where = spans >= 0, spans.clamp_min(0)
    first = torch.full((len(spans), count), spans.shape[1], device=spans.device)
    first = first.scatter_reduce(1, where, torch.where(inside, columns, spans.shape[1]), "amin")
    last = torch.full((len(spans), count), -1, device=spans.device)
    last = last.scatter_reduce(1, where, torch.where(inside, columns, -1), "amax")
    return torch.where(last < 0, 0, first), last


def _coin(log_heads: Tensor) -> Tensor:
    """Log-probabilities ``[..., 2]`` of heads and tails."""
    # A likelihood of exactly one leaves tails without mass, and every divergence from it infinite.
    log_heads = log_heads.clamp_max(-torch.finfo(log_heads.dtype).eps)
    small = log_heads < -0.6931471805599453
    far, near = torch.where(small, log_heads, -1.0), torch.where(small, -1.0, log_heads)
    tails = torch.where(small, torch.log1p(-far.exp()), torch.log(-torch.expm1(near)))
    return torch.stack([log_heads, tails], dim=-1)
