"""Contrastive losses: every query must find its own key among the others.

All are *batch-wise*: a row is a query, the other rows of the batch are its negatives, so the caller gathers
the rows of all processes and micro-batches first. The order of rows never matters; masked rows are neither
queries nor keys. ``ids`` (stable per sample, ``batch["id"]``) tell duplicates apart from negatives.
Similarities are cosines over ``temperature`` (a number or a learned scalar tensor) unless
``normalise=False``. Nothing is detached: pass detached keys, queues and teacher embeddings where no gradient
should flow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.features import unit_vectors
from limbeck.losses.reduce import hide_masked, reduce_rows


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    queue: Tensor | None = None,
    temperature: Tensor | float = 0.07,
    normalise: bool = True,
    symmetric: bool = False,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """InfoNCE: each query must pick its own key among all keys.

    Formula: ``-log( e^{s_ii} / sum_j e^{s_ij} )``, ``s_ij = cos(query_i, key_j) / T``
    Source: van den Oord et al., CPC, 2018; He et al., MoCo, 2020 (queue); Radford et al., CLIP, 2021
    Batch-wise: yes, the other rows are the negatives

    Args:
        queries: ``[batch, width]``.
        keys: ``[batch, width]``; key ``i`` is the positive of query ``i``, the others are negatives.
        queue: more negatives ``[queue, width]`` (``limbeck.nn`` has the queue), for the queries; filled rows
            only.
        temperature: a number or a learned scalar.
        normalise: cosines; else dot products.
        symmetric: half of this plus half of the loss with queries and keys exchanged (which no queue enters).
        ids: ``[batch]``; another row with the same id is no negative of mine: it leaves my sum.
        queue_ids: ``[queue]``; needs ``ids``.
        mask, weight, reduction, denominator: rows are queries; see :func:`limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats, at least 0; a scalar, or ``[batch]`` for ``none``. A row without negatives gives 0.

    :func:`nt_xent` adds the negatives of the own view, :func:`soft_info_nce` the similarities of a teacher,
    :func:`supervised_contrastive` labels.
    """
    mask = check_pairs(queries, keys, mask)
    queries, keys = embed(queries, normalise, mask), embed(keys, normalise, mask)
    own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    keep = allowed(own, ids, mask)
    scores, wide_keep = queries @ keys.mT, keep
    if queue is not None:
        scores = torch.cat([scores, queries @ embed(queue, normalise).mT], dim=1)
        wide_keep = torch.cat([keep, _queue_allowed(len(queries), queue, ids, queue_ids)], dim=1)
    elif queue_ids is not None:
        raise UserError("queue_ids", "ids without a queue", "a queue, or no queue_ids")
    values = _nce(scores / temperature, wide_keep)
    if symmetric:
        values = 0.5 * values + 0.5 * _nce(keys @ queries.mT / temperature, keep)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: Tensor | float = 0.5,
    normalise: bool = True,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """SimCLR's loss on two views of each sample; the negatives of a view are both views of all other samples.

    Formula: ``-log( e^{s(i, i')} / sum_{a != i} e^{s(i, a)} )`` over the 2 batch views a, ``s = cos / T``
    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020
    Batch-wise: yes, the other rows are the negatives

    A row is a sample and holds the mean of its two views' losses, so ``mean`` is SimCLR's mean over ``2
    batch`` views.

    Args:
        first: ``[batch, width]``.
        second: ``[batch, width]``, the other views, in the same order.
        temperature, normalise, ids, mask, weight, reduction, denominator: as :func:`info_nce`.

    :func:`info_nce` leaves out the negatives from the own view.
    """
    mask = check_pairs(first, second, mask)
    first, second = embed(first, normalise, mask), embed(second, normalise, mask)
    own = torch.eye(len(first), dtype=torch.bool, device=first.device)
    keep = allowed(own, ids, mask)
    keep = torch.cat([keep, keep & ~own], dim=1)
    values = 0.5 * _nce(first @ torch.cat([second, first]).mT / temperature, keep)
    values = values + 0.5 * _nce(second @ torch.cat([first, second]).mT / temperature, keep)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def soft_info_nce(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    *,
    queue: Tensor | None = None,
    teacher_queue: Tensor | None = None,
    alpha: float = 0.4,
    temperature: Tensor | float = 0.07,
    teacher_temperature: Tensor | float | None = None,
    normalise: bool = True,
    symmetric: bool = False,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """InfoNCE whose target is softened by a teacher's similarities.

    Formula: ``-sum_j [alpha softmax_j(teacher similarities / T) + (1 - alpha) truth_ij] log softmax_j(s_i)``
    Source: Li et al., Align before Fuse (ALBEF), NeurIPS 2021 (momentum distillation)
    Batch-wise: yes, the other rows are the negatives

    ``truth`` is shared evenly by all keys with the row's id (the one positive without ``ids``): here
    duplicates are positives, where :func:`info_nce` ignores them. The minimum is the entropy of the target,
    not zero; at ``alpha=1`` the gradient is zero where student and teacher similarities agree.

    Args:
        queries: ``[batch, width]``.
        keys: ``[batch, width]`` (in ALBEF the momentum encoder's).
        teacher_queries: ``[batch, width of the teacher]``.
        teacher_keys: ``[batch, width of the teacher]``.
        queue: more keys of the student's comparison ``[queue, width]``.
        teacher_queue: the same keys as the teacher sees them; by default ``queue``.
        alpha: share of the teacher, 0 to 1.
        teacher_temperature: by default ``temperature``.
        symmetric: half of this plus half of the loss with queries and keys exchanged (which no queue enters).
        temperature, normalise, ids, queue_ids, mask, weight, reduction, denominator: as :func:`info_nce`.

    ``relations.similarity_distribution`` follows the teacher alone, as a divergence that reaches zero.
    """
    if not 0 <= alpha <= 1:
        raise UserError("alpha", alpha, "0 to 1")
    mask = check_pairs(queries, keys, mask)
    check_pairs(teacher_queries, teacher_keys, mask)
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    queries, keys = embed(queries, normalise, mask), embed(keys, normalise, mask)
    teacher_queries, teacher_keys = (
        embed(teacher_queries, normalise, mask),
        embed(teacher_keys, normalise, mask),
    )
    own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    truth = own if ids is None else ids.unsqueeze(1) == ids.unsqueeze(0)
    keep = allowed(own, None, mask)

    def values_of(student: Tensor, teacher: Tensor, truth: Tensor, keep: Tensor) -> Tensor:
        return _soft_cross_entropy(student / temperature, teacher / teacher_temperature, truth & keep, keep, alpha)

    student_scores, teacher_scores = queries @ keys.mT, teacher_queries @ teacher_keys.mT
    wide_truth, wide_keep = truth, keep
    if queue is not None:
        other = queue if teacher_queue is None else teacher_queue
        student_scores = torch.cat([student_scores, queries @ embed(queue, normalise).mT], dim=1)
        teacher_scores = torch.cat([teacher_scores, teacher_queries @ embed(other, normalise).mT], dim=1)
        different = _queue_allowed(len(queries), queue, ids, queue_ids)
        wide_truth, wide_keep = (
            torch.cat([truth, ~different], dim=1),
            torch.cat([keep, torch.ones_like(different)], dim=1),
        )
    values = values_of(student_scores, teacher_scores, wide_truth, wide_keep)
    if symmetric:
        values = 0.5 * values + 0.5 * values_of(keys @ queries.mT, teacher_keys @ teacher_queries.mT, truth, keep)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def supervised_contrastive(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: Tensor | float = 0.07,
    normalise: bool = True,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Supervised contrastive loss: rows of one label attract, all others repel.

    Formula: ``-1/|P(i)| sum_{p in P(i)} log( e^{s_ip} / sum_{a != i} e^{s_ia} )``, P(i): same label
    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020 (L_out)
    Batch-wise: yes, over pairs of rows

    Args:
        features: ``[rows, width]``; views of one sample are rows of one label.
        labels: int ``[rows]``.
        temperature, normalise, mask, weight, reduction, denominator: as :func:`info_nce`. A row that is alone
            with its label gives 0, and ``mean`` counts it (as the released code); give ``mask`` or
            ``denominator`` for another rule.

    The released code's factor temperature / base temperature (1 by default) is left out. :func:`nt_xent`
    needs no labels.
    """
    if labels.shape != features.shape[:1]:
        raise UserError("labels", f"shape {tuple(labels.shape)}", f"one per row: ({len(features)},)")
    mask = check_row_mask(mask, features.shape[:1])
    features = embed(features, normalise, mask)
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    keep = allowed(own, None, mask) & ~own
    positive = (labels.unsqueeze(1) == labels.unsqueeze(0)) & keep
    log_probs = _log_softmax(features @ features.mT / temperature, keep)
    values = -torch.where(positive, log_probs, 0.0).sum(-1) / positive.sum(-1).clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def check_pairs(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor | None:
    """Refuse rows that do not pair up; the checked mask."""
    if queries.ndim != 2:
        raise UserError("queries", f"shape {list(queries.shape)}", "[batch, width]")
    check_same_shape(queries, keys, "keys")
    return check_row_mask(mask, queries.shape[:1])


def embed(vectors: Tensor, normalise: bool, mask: Tensor | None = None) -> Tensor:
    """Vectors ready for dot products, masked ones zero."""
    return unit_vectors(vectors, mask=mask) if normalise else hide_masked(vectors, mask)


def allowed(own: Tensor, ids: Tensor | None, mask: Tensor | None) -> Tensor:
    """Which keys enter a query's sum: its own, and every other that counts and is no duplicate."""
    keep = torch.ones_like(own) if ids is None else ids.unsqueeze(1) != ids.unsqueeze(0)
    if mask is not None:
        keep = keep & mask
    return keep | own


def _queue_allowed(rows: int, queue: Tensor, ids: Tensor | None, queue_ids: Tensor | None) -> Tensor:
    if queue_ids is None:
        return torch.ones(rows, len(queue), dtype=torch.bool, device=queue.device)
    if ids is None:
        raise UserError("ids", "None", "the ids of the batch, since queue_ids are given")
    return ids.unsqueeze(1) != queue_ids.unsqueeze(0)


def _log_softmax(scores: Tensor, keep: Tensor) -> Tensor:
    # A finite stand-in for -inf: a row that keeps nothing must not become NaN.
    return scores.masked_fill(~keep, torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def _nce(scores: Tensor, keep: Tensor) -> Tensor:
    """Minus the log-probability of the diagonal."""
    return -_log_softmax(scores, keep).diagonal()


def _soft_cross_entropy(student: Tensor, teacher: Tensor, truth: Tensor, keep: Tensor, alpha: float) -> Tensor:
    hard = truth.to(student.dtype) / truth.sum(-1, keepdim=True)
    log_student, log_teacher = _log_softmax(student, keep), _log_softmax(teacher, keep)
    target = alpha * log_teacher.exp() + (1 - alpha) * hard
    return -torch.where(keep, target * log_student, 0.0).sum(-1)
