"""Relation losses: not what each row says, but how the rows stand to one another.

Student and teacher may have different widths, since only relations are compared. All losses of this file are
*batch-wise*: they depend on pairs of samples, so splitting the batch changes them, and the caller gathers the
rows of all processes and micro-batches first. The order of the rows never matters, and masked rows leave
every pair, mean and norm. Relations of the positions *inside* one sample (``gram``, ``affinity``,
``self_attention_relations``) are in ``positions`` and split exactly. Nothing is detached.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.features import unit_vectors
from limbeck.losses.positions import softmax_divergence
from limbeck.losses.reduce import hide_masked, reduce_rows


def rkd_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    include_self: bool = False,
    delta: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Relational distance: the distances between samples, each in units of its own mean.

    Formula: ``mean_{j != i} huber(d_s(i, j) / mean d_s - d_t(i, j) / mean d_t)`` for every sample i
    Source: Park et al., Relational Knowledge Distillation, CVPR 2019
    Batch-wise: yes, over pairs of samples

    A row's value is the mean over its partners ``j != i``; the mean over rows is the mean over all ordered
    pairs. The normaliser is the mean distance over distinct pairs that do not coincide. Coincident points get
    zero gradient.

    Args:
        student: ``[batch, ...]``, flattened per sample.
        teacher: ``[batch, ...]``, of any width.
        include_self: divide by ``batch`` instead of ``batch - 1`` partners, as the released code, which
            counts the pairs (i, i).
        delta: where the Huber loss turns linear, in units of the mean distance.
        mask, weight, reduction, denominator: rows are samples; see :func:`limbeck.losses.reduce.reduce_rows`.

    Returns:
        Without units; a scalar, or ``[batch]`` for ``none``.

    The paper weighs it 25 and its sibling :func:`rkd_angle` 50.
    """
    student, teacher, counts = _samples(student, teacher, mask)
    pairs = _distinct_pairs(counts)
    gaps = F.huber_loss(
        _relative_distances(student, pairs),
        _relative_distances(teacher, pairs),
        reduction="none",
        delta=delta,
    )
    partners = counts.sum() if include_self else counts.sum() - 1
    values = torch.where(pairs, gaps, 0.0).sum(-1) / partners.clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def rkd_angle(
    student: Tensor,
    teacher: Tensor,
    *,
    include_self: bool = False,
    delta: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Relational angle: the angles of all triangles of samples, which no scale and no offset changes.

    Formula: ``mean_{j, k} huber(cos angle_s(j, i, k) - cos angle_t(j, i, k))`` for every vertex i
    Source: Park et al., Relational Knowledge Distillation, CVPR 2019
    Batch-wise: yes, over triples of samples

    A row is the vertex ``i``; its value is the mean over ordered pairs of arms ``j != k``, both other than
    ``i``. An arm of length zero (coincident points) has cosine 0 with all others and no gradient. Memory is
    ``batch^2 (batch + width)``.

    Args:
        include_self: divide by ``batch^2`` instead of ``(batch - 1)(batch - 2)`` pairs of arms, as the
            released code, which counts the degenerate triples.
        student, teacher, delta, mask, weight, reduction, denominator: as :func:`rkd_distance`.

    :func:`rkd_distance` is quadratic in the batch instead of cubic.
    """
    student, teacher, counts = _samples(student, teacher, mask)
    pairs = _distinct_pairs(counts)
    triples = pairs.unsqueeze(2) & pairs.unsqueeze(1) & pairs.unsqueeze(0)
    gaps = F.huber_loss(_cosines_at_vertices(student), _cosines_at_vertices(teacher), reduction="none", delta=delta)
    n = counts.sum()
    arms = n * n if include_self else (n - 1) * (n - 2)
    values = torch.where(triples, gaps, 0.0).sum((-2, -1)) / arms.clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def similarity_preserving(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Similarity-preserving distillation: samples alike to the teacher shall be alike to the student.

    Formula: ``||G_s - G_t||_F^2 / batch^2``, ``G = A A^T`` with L2-normalised rows
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019
    Batch-wise: yes, over pairs of samples

    Args:
        student: ``[batch, ...]``, flattened per sample (activation maps as they are).
        teacher: ``[batch, ...]``, of any width.
        mask, weight, reduction, denominator: rows are samples; see :func:`limbeck.losses.reduce.reduce_rows`.

    :func:`cka` centres and normalises the whole matrix; :func:`similarity_distribution` is a divergence of
    softmaxes.
    """
    student, teacher, counts = _samples(student, teacher, mask)
    student, teacher = _unit_scale(student), _unit_scale(teacher)
    first, second = unit_vectors(student @ student.mT), unit_vectors(teacher @ teacher.mT)
    values = (first - second).square().sum(-1) / counts.sum().clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def cka(
    student: Tensor,
    teacher: Tensor,
    *,
    debiased: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Linear CKA distance: are the two representations the same up to rotation, offset and scale?

    Formula: ``1 - <K, L> / (|K| |L|)``, K and L the centred Gram matrices of student and teacher
    Source: Kornblith et al., Similarity of Representations Revisited, ICML 2019; Song et al., 2012 (debiased)
    Batch-wise: yes, over pairs of samples

    Computed as ``| K/|K| - L/|L| |^2 / 2``: the same number, never negative, and exactly zero at equality. A
    row's value is its share times the number of rows, so that the mean over rows is the distance. A
    representation without variation has distance 1 from any other and zero gradient.

    Args:
        student: ``[batch, ...]``, flattened per sample.
        teacher: ``[batch, ...]``, of any width.
        debiased: U-centred Gram matrices with a zero diagonal, whose inner product is the unbiased estimate
            of HSIC: use it where the width is not far below the batch, where plain CKA of anything tends to
            1. Needs 4 rows or more.
        mask, weight, reduction, denominator: rows are samples; see :func:`limbeck.losses.reduce.reduce_rows`.

    :func:`similarity_preserving` compares the Gram matrices row by row.
    """
    student, teacher, counts = _samples(student, teacher, mask)
    first, second = (_unit_matrix(_centred_gram(x, counts, debiased)) for x in (student, teacher))
    one_is_zero = (first == 0).all() != (second == 0).all()
    values = 0.5 * counts.sum() * (first - second).square().sum(-1) + 0.5 * one_is_zero
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def similarity_distribution(
    student: Tensor,
    teacher: Tensor,
    *,
    student_keys: Tensor | None = None,
    teacher_keys: Tensor | None = None,
    temperature: Tensor | float = 0.1,
    teacher_temperature: Tensor | float | None = None,
    normalise: bool = True,
    symmetric: bool = False,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Distribution of each sample's similarity over the batch, the student's against the teacher's.

    Formula: ``KL(P_t || P_s)`` per row, ``P(i) = softmax_j(sim(query_i, key_j) / T)``
    Source: Fang et al., SEED, ICLR 2021; Wu et al., TinyCLIP, ICCV 2023 (affinity mimicking)
    Batch-wise: yes, the other rows are the keys

    Without keys the rows are related to one another and a row is no key of its own. With keys (images against
    texts, queries against documents) the whole row of the similarity matrix counts.

    Args:
        student: queries ``[batch, width]``.
        teacher: queries ``[batch, width of the teacher]``.
        student_keys: ``[keys, width]`` or None; give it and ``teacher_keys`` together.
        teacher_keys: ``[keys, width of the teacher]``.
        temperature: of the student, and of the teacher unless ``teacher_temperature`` is given. No T^2 factor
            is applied.
        normalise: cosine similarities; else dot products.
        symmetric: half of this plus half of the divergence of the columns (as many keys as queries).
        mask: bool ``[batch]``: those rows count. They also are the keys, unless ``key_mask`` says otherwise.
        key_mask: bool ``[keys]``; by default ``mask`` if there are as many keys as queries, else all.
        weight, reduction, denominator: rows are queries; see :func:`limbeck.losses.reduce.reduce_rows`.

    ``contrastive.soft_info_nce`` mixes in the true pairs; :func:`similarity_preserving` compares without a
    softmax.
    """
    mask = check_row_mask(mask, student.shape[:1])
    if (student_keys is None) != (teacher_keys is None):
        raise UserError("student_keys, teacher_keys", "one of the two", "both or neither")
    if key_mask is None and (student_keys is None or len(student_keys) == len(student)):
        key_mask = mask
    student_scores = _similarities(student, student_keys, mask, key_mask, normalise) / temperature
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    teacher_scores = _similarities(teacher, teacher_keys, mask, key_mask, normalise) / teacher_temperature
    check_same_shape(student_scores, teacher_scores, "similarity matrix of the teacher")
    keep = torch.ones_like(student_scores, dtype=torch.bool) if key_mask is None else key_mask.expand_as(student_scores)
    if student_keys is None:
        keep = keep & ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    values = softmax_divergence(student_scores, teacher_scores, keep)
    if symmetric:
        if student_scores.shape[0] != student_scores.shape[1]:
            raise UserError("symmetric", f"{tuple(student_scores.shape)} similarities", "as many keys as queries")
        keep = keep.mT if mask is None else keep.mT & mask
        values = 0.5 * values + 0.5 * softmax_divergence(student_scores.mT, teacher_scores.mT, keep)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _samples(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Flat samples, masked ones zero, and which of them count."""
    if len(student) != len(teacher):
        raise UserError("batch of student and teacher", f"{len(student)} and {len(teacher)} rows", "as many rows")
    mask = check_row_mask(mask, student.shape[:1])
    counts = torch.ones(len(student), dtype=torch.bool, device=student.device) if mask is None else mask
    return hide_masked(student.flatten(1), mask), hide_masked(teacher.flatten(1), mask), counts


def _unit_scale(samples: Tensor) -> Tensor:
    """For losses that do not know the scale of their features: divide it out before it is squared."""
    peak = samples.detach().abs().amax() if samples.numel() else samples.new_zeros(())
    return samples / torch.where(peak > 1e-8, peak, 1.0)


def _distinct_pairs(counts: Tensor) -> Tensor:
    return counts.unsqueeze(0) & counts.unsqueeze(1) & ~torch.eye(len(counts), dtype=torch.bool, device=counts.device)


def _relative_distances(samples: Tensor, pairs: Tensor) -> Tensor:
    # Not by the matrix-product shortcut, which loses small distances of far-away points; zero distances have
    # zero gradient.
    distances = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    apart = pairs & (distances > 0)
    mean = torch.where(apart, distances, 0.0).sum() / apart.sum().clamp_min(1)
    return distances / torch.where(mean > 1e-8, mean, 1.0)


def _cosines_at_vertices(samples: Tensor) -> Tensor:
    arms = unit_vectors(samples.unsqueeze(0) - samples.unsqueeze(1))
    return arms @ arms.mT


def _centred_gram(samples: Tensor, counts: Tensor, debiased: bool) -> Tensor:
    n = counts.sum()
    if debiased and len(counts) < 4:
        raise UserError("debiased", f"{len(counts)} rows", "at least 4 rows")
    mean = samples.sum(0) / n.clamp_min(1)
    centred = torch.where(counts.unsqueeze(-1), samples - mean, 0.0)
    # What is left of a constant representation is the rounding of its mean: no variation, not a tiny one.
    rounding = 8 * torch.finfo(samples.dtype).eps * samples.detach().abs()
    centred = _unit_scale(torch.where(centred.detach().abs() <= rounding, 0.0, centred))
    matrix = centred @ centred.mT
    if not debiased:
        return matrix
    pairs = _distinct_pairs(counts)
    matrix = torch.where(pairs, matrix, 0.0)
    row_means = matrix.sum(-1) / (n - 2).clamp_min(1)
    total = matrix.sum() / ((n - 1) * (n - 2)).clamp_min(1)
    return torch.where(pairs, matrix - row_means.unsqueeze(0) - row_means.unsqueeze(1) + total, 0.0)


def _unit_matrix(matrix: Tensor) -> Tensor:
    return unit_vectors(matrix.flatten()).reshape(matrix.shape)


def _similarities(
    queries: Tensor, keys: Tensor | None, mask: Tensor | None, key_mask: Tensor | None, normalise: bool
) -> Tensor:
    rows = unit_vectors(queries, mask=mask) if normalise else hide_masked(queries, mask)
    if keys is None:
        return rows @ rows.mT
    return rows @ (unit_vectors(keys, mask=key_mask) if normalise else hide_masked(keys, key_mask)).mT
