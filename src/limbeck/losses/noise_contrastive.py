"""Noise-contrastive estimation: every pair is judged on its own, true pair or noise.

Embeddings are normalised and similarities divided by ``temperature`` as in ``contrastive``.
Nothing is detached.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.contrastive import allowed, check_pairs, embed
from limbeck.losses.reduce import hide_masked, reduce_rows


def crd(
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor | None = None,
    *,
    log_noise: Tensor | float | None = None,
    log_normaliser: Tensor | float = 0.0,
    temperature: Tensor | float = 0.07,
    normalise: bool = True,
    symmetric: bool = False,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Contrastive representation distillation: tell the teacher's view of my sample from its views of others.

    Formula: ``-log h(s, t) - sum_{k negatives} log(1 - h(s, t_j))``, ``1 / h = 1 + k p_n Z / e^{s.t/T}``
    Source: Tian et al., Contrastive Representation Distillation, ICLR 2020
    Batch-wise: yes, without given negatives; no, with them

    Args:
        student: anchors ``[batch, width]``, projected to the common width.
        teacher: positives ``[batch, width]``.
        negatives: teacher embeddings of other samples, ``[batch, k, width]`` or, shared, ``[k, width]``. None
            is the exact form without a sampler or a memory bank: all other rows of the batch.
        log_noise: ``log p_n``, a number (``-log(dataset size)`` in the paper) or a tensor ``[batch, 1 + k]``
            with the positive first, for negatives that were drawn from another distribution. None: ``k p_n =
            1``, uniform over the negatives at hand. In-batch only a number will do.
        log_normaliser: ``log Z``; 0 as in the paper's formula, or :func:`crd_log_normaliser` of a first
            batch, kept constant, as released.
        symmetric: half of this plus half of the loss with student and teacher exchanged (in-batch only; the
            released code adds the two halves).
        ids: in-batch, another row with the same id is no negative.
        temperature, normalise, mask, weight, reduction, denominator: as :func:`info_nce`.

    :func:`info_nce` on (student, teacher) needs neither Z nor p_n.
    """
    mask = check_pairs(student, teacher, mask)
    student, teacher = embed(student, normalise, mask), embed(teacher, normalise, mask)
    positive = (student * teacher).sum(-1) / temperature - log_normaliser
    if negatives is None:
        if isinstance(log_noise, Tensor) and log_noise.ndim:
            raise UserError("log_noise", f"shape {tuple(log_noise.shape)}", "a number, for negatives from the batch")
        own = torch.eye(len(student), dtype=torch.bool, device=student.device)
        keep = allowed(own, ids, mask) & ~own
        scores = student @ teacher.mT / temperature - log_normaliser
        log_expected = _log_count(keep, log_noise, scores)
        values = _nce_binary(positive, scores, log_expected, log_expected.unsqueeze(-1), keep)
        if symmetric:
            other = _nce_binary(positive, scores.mT, log_expected, log_expected.unsqueeze(-1), keep)
            values = 0.5 * values + 0.5 * other
    else:
        if symmetric or ids is not None:
            raise UserError(
                "symmetric, ids", "with given negatives", "negatives=None; for two directions add two calls"
            )
        rows = None if negatives.ndim == 2 or mask is None else mask.unsqueeze(-1)
        pool = embed(negatives, normalise, None if rows is None else rows.expand(negatives.shape[:-1]))
        scores = _similarities(student, pool) / temperature - log_normaliser
        keep = torch.ones_like(scores, dtype=torch.bool)
        if isinstance(log_noise, Tensor) and log_noise.ndim:
            expected = hide_masked(log_noise, mask) + math.log(max(scores.shape[-1], 1))
            values = _nce_binary(positive, scores, expected[..., 0], expected[..., 1:], keep)
        else:
            log_expected = _log_count(keep, log_noise, scores)
            values = _nce_binary(positive, scores, log_expected, log_expected.unsqueeze(-1), keep)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def crd_log_normaliser(
    student: Tensor,
    negatives: Tensor,
    *,
    dataset_size: int,
    temperature: Tensor | float = 0.07,
    normalise: bool = True,
) -> Tensor:
    """``log Z = log(dataset_size * mean e^{s.t/T})``, which released CRD estimates on its first batch.

    ``student`` is ``[batch, width]``, ``negatives`` ``[k, width]`` or ``[batch, k, width]``; the result is a
    detached scalar for ``crd(log_normaliser=...)``.
    """
    student, pool = embed(student.detach(), normalise), embed(negatives.detach(), normalise)
    scores = _similarities(student, pool) / temperature
    return scores.detach().flatten().logsumexp(0) - math.log(scores.numel()) + math.log(dataset_size)


def _similarities(student: Tensor, pool: Tensor) -> Tensor:
    return student @ pool.mT if pool.ndim == 2 else (pool @ student.unsqueeze(-1)).squeeze(-1)


def _log_count(keep: Tensor, log_noise: Tensor | float | None, like: Tensor) -> Tensor:
    """``log(k p_n)`` per row."""
    count = keep.sum(-1).clamp_min(1).to(like.dtype)
    return torch.zeros_like(count) if log_noise is None else count.log() + log_noise


def _nce_binary(
    positive: Tensor, negative: Tensor, positive_noise: Tensor, negative_noise: Tensor, keep: Tensor
) -> Tensor:
    """Two-sided logistic loss in log space: ``-log h`` of the positive, ``-log(1 - h)`` of the negatives."""
    against = torch.where(keep, F.softplus(negative - negative_noise), 0.0)
    return F.softplus(positive_noise - positive) + against.sum(-1)
