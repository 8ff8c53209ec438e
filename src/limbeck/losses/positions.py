"""Relations of the positions (tokens, pixels) or channels inside each sample.

Samples never meet, so with a common ``denominator`` the pieces of a split batch add up to the whole. Student
and teacher may differ in what is summed out: in width for :func:`affinity` and
:func:`self_attention_relations`, in positions for :func:`gram`. Nothing is detached.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.features import reduce_elements, unit_vectors
from limbeck.losses.reduce import hide_masked, reduce_rows


def gram(
    student: Tensor,
    teacher: Tensor,
    *,
    student_second: Tensor | None = None,
    teacher_second: Tensor | None = None,
    axis: int = 1,
    normalise: bool = False,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared difference of channel Gram matrices: which channels go together, wherever they do.

    Formula: ``mean_cd (G_s - G_t)_cd^2`` per sample, ``G = A B^T / positions``
    Source: Gatys et al., Image Style Transfer, CVPR 2016; Yim et al., A Gift from KD, CVPR 2017 (FSP)
    Batch-wise: no

    ``B = A`` gives the style loss; a second layer gives the flow-of-solution matrix of FSP. Channels must
    agree between student and teacher, positions need not. Quadratic in the features, with cubic gradients: at
    features of 10^4 these leave the range of float16 unless ``normalise=True``.

    Args:
        student: ``[batch, channels, *positions]``, or channels at ``axis`` (``-1`` for tokens).
        teacher: the same batch and channels.
        student_second: ``[batch, channels2, *positions]`` of another layer at the same positions, or None for
            ``student``.
        teacher_second: as ``student_second`` for the teacher; give both or neither.
        axis: the channel axis, not 0.
        normalise: divide each Gram matrix by its Frobenius norm, so that only the pattern counts.
        per_row: ``mean`` or ``sum`` over the entries of the matrix.
        mask, weight, reduction, denominator: rows are samples; see :func:`limbeck.losses.reduce.reduce_rows`.

    :func:`affinity` relates positions instead of channels.
    """
    if (student_second is None) != (teacher_second is None):
        raise UserError("student_second, teacher_second", "one of the two", "both or neither")
    mask = check_row_mask(mask, student.shape[:1])
    first = _channel_gram(student, student_second, axis, mask)
    second = _channel_gram(teacher, teacher_second, axis, mask)
    check_same_shape(first, second, "channel Gram matrix of the teacher")
    first, second = first.flatten(1), second.flatten(1)
    if normalise:
        first, second = unit_vectors(first), unit_vectors(second)
    values = reduce_elements((first - second).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def affinity(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = -1,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Pairwise affinity inside each sample: which tokens or pixels resemble which.

    Formula: ``mean_j (cos_s(i, j) - cos_t(i, j))^2`` for every position i, over the positions j of its sample
    Source: Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019 (pair-wise)
    Batch-wise: no

    A row is a position; its value is the mean over all positions that count (itself included, as published).

    Args:
        student: ``[batch, positions, features]``, or ``[batch, channels, height, width]`` with ``axis=1``.
        teacher: the same positions; the width may differ.
        axis: where the features lie, not 0.
        mask: bool ``[batch, *positions]``, False for padding: those positions are neither rows nor partners.
        weight, reduction, denominator: see :func:`limbeck.losses.reduce.reduce_rows`.

    Memory is ``batch * positions^2``: pool large maps first, as the paper does.

    ``relations.similarity_preserving`` does the same between samples.
    """
    if axis % student.ndim == 0:
        raise UserError("axis", axis, "an axis after the batch axis 0")
    mask = check_row_mask(mask, student.movedim(axis, -1).shape[:-1])
    check_same_shape(student.select(axis, 0), teacher.select(axis, 0), "positions of the teacher")
    first, second = unit_vectors(student, axis=axis, mask=mask), unit_vectors(teacher, axis=axis, mask=mask)
    rows = first.shape[:-1]
    first, second = first.flatten(1, -2), second.flatten(1, -2)
    squares = (first @ first.mT - second @ second.mT).square()
    # Padding is a zero vector on both sides: its cosines are equal and add nothing.
    partners = squares.shape[-1] if mask is None else mask.flatten(1).sum(-1, keepdim=True).clamp_min(1)
    values = (squares.sum(-1) / partners).reshape(rows)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def self_attention_relations(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    *,
    relation_heads: int = 1,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Self-attention relations of queries, keys or values: how each token attends to the others.

    Formula: ``mean_heads KL(R_t || R_s)`` per token, ``R = softmax(X X^T / sqrt(d))``, sum over the X
    Source: Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, Findings of ACL 2021
    Batch-wise: no

    Give one tensor for one relation (value-value, say) or a sequence, ``(queries, keys, values)``, whose
    divergences are summed, as in the paper. All heads are joined on the last axis and cut again into
    ``relation_heads``, so the numbers of attention heads and the widths of student and teacher may differ.

    Args:
        student: ``[batch, tokens, width]``, or a sequence of such.
        teacher: as many, with the same batch and tokens.
        relation_heads: divides both widths; the divergence is averaged over them.
        mask: bool ``[batch, tokens]``, False for padding: those tokens are neither queries nor keys.
        weight, reduction, denominator: rows are query tokens; see :func:`limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats; a scalar, or ``[batch, tokens]`` for ``none``.

    Raises:
        UserError: ``relation_heads`` does not divide a width; unequal numbers of relations or unequal tokens.

    With values alone it is the value relation of MiniLM (2020). :func:`affinity` compares cosines without a
    softmax.
    """
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if len(students) != len(teachers) or not students:
        raise UserError(
            "relations",
            f"{len(students)} of the student, {len(teachers)} of the teacher",
            "as many of both, at least one",
        )
    mask = check_row_mask(mask, students[0].shape[:-1])
    values = sum(
        (_relation_divergence(s, t, relation_heads, mask) for s, t in zip(students, teachers, strict=True)),
        start=torch.zeros((), device=students[0].device),
    )
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def softmax_divergence(student_scores: Tensor, teacher_scores: Tensor, keep: Tensor) -> Tensor:
    """``KL(softmax teacher || softmax student)`` over the last axis, within ``keep`` alone.

    Scores that are not kept may be any finite number. A row that keeps nothing gives zero.
    """
    # Half the lowest number instead of -inf: their differences stay finite, so that 0 * difference is 0.
    lowest = torch.finfo(student_scores.dtype).min / 2
    log_student = student_scores.masked_fill(~keep, lowest).log_softmax(-1)
    log_teacher = teacher_scores.to(student_scores.dtype).masked_fill(~keep, lowest).log_softmax(-1)
    return torch.where(keep, log_teacher.exp() * (log_teacher - log_student), 0.0).sum(-1)


def _channel_gram(first: Tensor, second: Tensor | None, axis: int, mask: Tensor | None) -> Tensor:
    if axis % first.ndim == 0:
        raise UserError("axis", axis, "an axis after the batch axis 0")
    flat = [
        hide_masked(x.movedim(axis, -1).flatten(1, -2), mask, dims=2)
        for x in (first, first if second is None else second)
    ]
    if flat[0].shape[1] != flat[1].shape[1]:
        raise UserError(
            "positions of the two layers",
            f"{flat[0].shape[1]} and {flat[1].shape[1]}",
            "as many; pool the larger",
        )
    return flat[0].mT @ flat[1] / flat[0].shape[1]


def _relation_divergence(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    check_same_shape(student[..., 0], teacher[..., 0], "batch and tokens of the teacher")
    scores = []
    for tokens in (student, teacher):
        width = tokens.shape[-1]
        if heads < 1 or width % heads:
            raise UserError("relation_heads", heads, f"a divisor of both widths; one is {width}")
        split = hide_masked(tokens, mask).reshape(*tokens.shape[:2], heads, width // heads).transpose(1, 2)
        scores.append(split @ split.mT / (width // heads) ** 0.5)
    keep = torch.ones_like(scores[0], dtype=torch.bool) if mask is None else mask[:, None, None, :].expand_as(scores[0])
    return softmax_divergence(scores[0], scores[1], keep).mean(1)
