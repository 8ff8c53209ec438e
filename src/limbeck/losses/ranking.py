"""Losses on the order of a list: classes, or candidates of a query. The list is the last axis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.losses._inputs import (
    check_choice,
    check_labels,
    check_row_mask,
    check_same_shape,
    check_temperature,
    expected,
    temper,
)
from limbeck.losses.reduce import hide_masked, reduce_rows

IGNORE_INDEX = -100
STEP_WEIGHTS = ("teacher", "uniform", "decreasing", "one_hot")
# Score of excluded entries: so low that its exponential is 0, yet finite, so that no gradient sees inf - inf.
FAR_BELOW = -1e30


def plackett_luce(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    weights: str | Tensor = "teacher",
    candidates: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Plackett-Luce distillation (PLD): the likelihood of the teacher's ranking with the label on top.

    Formula: ``sum_k a_k (logsumexp_{l >= k} s_{p_l} - s_{p_k})``, p the ranking,
        ``a_k = softmax(teacher / T)_{p_k}``
    Source: PLD: A Choice-Theoretic List-Wise Knowledge Distillation, NeurIPS 2025
    Batch-wise: no

    The first step is the cross-entropy on the label, so nothing has to be balanced. Convex in the student's
    logits and unchanged by a constant added to either side. The student is never tempered.

    Args:
        student_logits, teacher_logits: ``[..., C]``, classes or candidates. The ranking has no gradient; the
            weights have none either.
        target: label, or index of the positive candidate, ``[...]``; it is put first. None: the teacher's
            order alone.
        temperature: T of the weights only; a number, or one per row ``[...]``.
        weights: of the steps: ``teacher`` (PLD); ``uniform``, 1/C, ListMLE over C; ``decreasing``, 2^(C-k) -
            1 over its sum, p-ListMLE; ``one_hot``, cross-entropy; or a tensor broadcastable to ``[..., C]``,
            by rank.
        candidates: bool ``[..., C]``, False for the padding of shorter lists. Entries that are -inf on both
            sides are left out too.
        ignore_index: rows with this target do not count.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: shapes that differ, a target outside the list or among the excluded, an unknown weighting.

    Teacher ties are broken by the lower index. A sure teacher turns this into cross-entropy, and one that is
    sure of another class leaves the label nearly without weight: watch the mean of a_1. :func:`list_net` uses
    the magnitudes of the teacher's logits as well.
    """
    if isinstance(weights, str):
        check_choice("weights", weights, STEP_WEIGHTS)
    student, teacher, allowed, mask = _lists(student_logits, teacher_logits, candidates, mask)
    target, mask = _positives(target, allowed, mask, ignore_index)
    order = _ranking(teacher, allowed, target)
    count = allowed.sum(dim=-1, keepdim=True)
    rank = torch.arange(1, student.shape[-1] + 1, device=student.device)
    listed = rank <= count
    if isinstance(weights, Tensor):
        steps = _as_steps(weights, student)
    elif weights == "teacher":
        scores = torch.where(allowed, teacher.detach(), -torch.inf)
        steps = temper(scores, temperature).softmax(dim=-1).gather(-1, order)
    elif weights == "uniform":
        steps = 1.0 / count.clamp_min(1).to(student.dtype).expand_as(student)
    elif weights == "decreasing":
        # 2^(n - k) - 1 divided by 2^n throughout: the power itself overflows for a thousand classes.
        falling = torch.where(listed, torch.exp2(-rank.to(student.dtype)) - torch.exp2(-count.to(student.dtype)), 0.0)
        steps = falling / falling.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(student.dtype).tiny)
    else:
        steps = (rank == 1).to(student.dtype).expand_as(student)
    steps = torch.where(listed, steps, 0.0)
    values = (steps * _choice_costs(student, allowed, order)).sum(dim=-1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def list_mle(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Negative log-likelihood of the teacher's whole ranking: every step counts 1, the unimportant tail too.

    Formula: ``sum_k (logsumexp_{l >= k} s_{p_l} - s_{p_k})``, p the ranking by falling teacher score
    Source: Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008
    Batch-wise: no

    Arguments, errors and result as for :func:`plackett_luce`, which weighs the steps; it is C times that loss
    with ``weights="uniform"``.
    """
    ones = torch.ones(student_logits.shape[-1], device=student_logits.device)
    return plackett_luce(
        student_logits,
        teacher_logits,
        target,
        weights=ones,
        candidates=candidates,
        ignore_index=ignore_index,
        mask=mask,
        weight=weight,
        reduction=reduction,
        denominator=denominator,
    )


def list_net(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    candidates: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the student's top-one probabilities under the teacher's, over a list of candidates.

    Formula: ``-sum_i p_i log q_i``, ``p = softmax(teacher / T_teacher)``, ``q = softmax(student / T)`` over
        the list
    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007
    Batch-wise: no

    The ragged-list sibling of :func:`~limbeck.losses.divergences.soft_cross_entropy`: no T^2, the teacher's
    entropy is not taken off, so it is not zero at student = teacher, though its gradient is.

    Args:
        student_logits, teacher_logits: scores ``[..., C]``.
        temperature: T of the student, and of the teacher unless ``teacher_temperature`` is given.
        candidates: bool ``[..., C]``, False for the padding of shorter lists.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.
    """
    student, teacher, allowed, mask = _lists(student_logits, teacher_logits, candidates, mask)
    # An empty list is masked; its entries take part so that its softmax has something to divide.
    allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
    if teacher_temperature is None:
        teacher_temperature = temperature
    student = temper(torch.where(allowed, student, -torch.inf), temperature).log_softmax(dim=-1)
    teacher = temper(torch.where(allowed, teacher, -torch.inf), teacher_temperature, "teacher_temperature")
    values = expected(teacher.softmax(dim=-1), -student)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def margin_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared error of the margins between positive and negatives; a constant per list does not count.

    Formula: ``mean_j [(s_y - s_j) - (t_y - t_j)]^2`` over the negatives j
    Source: Hofstaetter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
        Distillation, 2020
    Batch-wise: no

    Args:
        student_logits, teacher_logits: scores ``[..., C]``: one positive and its negatives.
        target: index of the positive ``[...]``; None means the first of the list.
        candidates: bool ``[..., C]``, False for the padding of shorter lists. A list without negatives gives
            0.
        ignore_index: rows with this target do not count.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    The unit is the square of the scores', so rescale a teacher whose scores have another range. The order
    alone is compared by :func:`pairwise_logistic` and :func:`plackett_luce`.
    """
    student, teacher, allowed, mask = _lists(student_logits, teacher_logits, candidates, mask)
    if target is None:
        target = torch.zeros(student.shape[:-1], dtype=torch.long, device=student.device)
    chosen, mask = _positives(target, allowed, mask, ignore_index)
    index = (target if chosen is None else chosen).unsqueeze(-1)
    gap = (student.gather(-1, index) - student) - (teacher.gather(-1, index) - teacher)
    negatives = allowed.scatter(-1, index, False)
    errors = torch.where(negatives, gap, 0.0).square().sum(dim=-1)
    values = errors / negatives.sum(dim=-1).clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def pairwise_logistic(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    pairs: str = "order",
    temperature: float = 1.0,
    candidates: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """RankNet: the student orders every pair of the list as the teacher does, or as surely as it does.

    Formula: ``mean over t_i > t_j of log(1 + exp(-(s_i - s_j)))``; soft: BCE of ``sigmoid((t_i - t_j) / T)``
    Source: Burges et al., Learning to Rank using Gradient Descent, ICML 2005
    Batch-wise: no

    Args:
        student_logits, teacher_logits: scores ``[..., C]``; the cost is C^2.
        pairs: ``order``: pairs the teacher does not tie, each with a hard label; ``soft``: all pairs, with
            the teacher's own probability of the order as the label (zero gradient at student = teacher if T =
            1).
        temperature: T of the teacher's probabilities, for ``soft``.
        candidates: bool ``[..., C]``, False for the padding of shorter lists.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`. A list without
            any pair gives 0.
    """
    check_choice("pairs", pairs, ("order", "soft"))
    check_temperature(temperature)
    student, teacher, allowed, mask = _lists(student_logits, teacher_logits, candidates, mask)
    student_gap = student.unsqueeze(-1) - student.unsqueeze(-2)
    teacher_gap = teacher.unsqueeze(-1) - teacher.unsqueeze(-2)
    both = allowed.unsqueeze(-1) & allowed.unsqueeze(-2)
    if pairs == "order":
        counted = both & (teacher_gap > 0)
        costs = functional.softplus(-student_gap)
    else:
        counted = both.triu(1)
        costs = functional.softplus(student_gap) - torch.sigmoid(teacher_gap / temperature) * student_gap
    total = torch.where(counted, costs, 0.0).sum(dim=(-2, -1))
    values = total / counted.sum(dim=(-2, -1)).clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _lists(
    student: Tensor, teacher: Tensor, candidates: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides, 0 outside the list; which entries are in the list; which rows count (empty ones do not)."""
    check_same_shape(student, teacher)
    mask = check_row_mask(mask, student.shape[:-1])
    if candidates is not None:
        candidates = check_row_mask(candidates, student.shape, "candidates")
    student, teacher = hide_masked(student, mask), hide_masked(teacher, mask)
    allowed = ~(torch.isneginf(student) & torch.isneginf(teacher))
    if candidates is not None:
        allowed = allowed & candidates
    filled = allowed.any(dim=-1)
    mask = filled if mask is None else mask & filled
    return torch.where(allowed, student, 0.0), torch.where(allowed, teacher, 0.0), allowed, mask


def _as_steps(weights: Tensor, student: Tensor) -> Tensor:
    try:
        return weights.to(student.dtype).expand_as(student)
    except RuntimeError as error:
        raise UserError(
            "weights", f"shape {list(weights.shape)}", f"a shape that fits {list(student.shape)}"
        ) from error


def _positives(target: Tensor | None, allowed: Tensor, mask: Tensor, ignore_index: int) -> tuple[Tensor | None, Tensor]:
    """Checked positions of the positives, and the rows that have one."""
    if target is None:
        return None, mask
    rows, length = allowed.shape[:-1], allowed.shape[-1]
    target, counted = check_labels(target, rows, length, mask=mask, ignore_index=ignore_index)
    excluded = counted & ~allowed.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if bool(excluded.any()):
        raise UserError(
            "target", f"entry {int(target[excluded][0])}, which is excluded", "an entry that candidates keep"
        )
    return target, counted


def _ranking(teacher: Tensor, allowed: Tensor, target: Tensor | None) -> Tensor:
    """Indices from first choice to last: target, others by falling score (ties by index), excluded."""
    order = teacher.detach().argsort(dim=-1, descending=True, stable=True)
    group = torch.where(allowed, 1, 2)
    if target is not None:
        group = group.scatter(-1, target.unsqueeze(-1), 0)
    return order.gather(-1, group.gather(-1, order).argsort(dim=-1, stable=True))


def _choice_costs(student: Tensor, allowed: Tensor, order: Tensor) -> Tensor:
    """``logsumexp(what is left) - score of the choice`` for every rank, summed from the worst choice up."""
    student = torch.where(allowed, student, FAR_BELOW)
    ranked = student.gather(-1, order)
    ranked = ranked - ranked.detach().amax(dim=-1, keepdim=True)
    left = ranked.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return left - ranked
