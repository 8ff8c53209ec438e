"""Feature losses: the distance between what two networks hold at one place.

A *row* is one feature vector. ``axis`` says where its features lie: ``-1`` (the default) for tokens and
embeddings ``[..., features]``, ``1`` for channels-first maps ``[batch, channels, height, width]``, whose rows
are then the pixels ``[batch, height, width]``. ``mask`` and ``weight`` have the shape of the rows.
``per_row`` says how the elements of one row become its value: ``mean`` over the features (the default, so
that ``reduction="mean"`` is the usual mean over all elements) or ``sum`` (the squared Euclidean distance, for
:func:`mse`).

All of them work row by row: with a common ``denominator`` the pieces of a split batch add up to the whole.
They neither project nor resize: give features of equal shape (``limbeck.nn`` has the projectors). Nothing is
detached.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_choice, check_row_mask, check_same_shape
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows

PER_ROW = ("mean", "sum")


def mse(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = -1,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared difference of features: pulls hardest on the elements that are furthest off.

    Formula: ``mean_d (s_d - t_d)^2`` per row; with ``per_row="sum"``, ``||s - t||^2``
    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015
    Batch-wise: no

    Args:
        student: ``[..., features]``, or features at ``axis``.
        teacher: the same shape.
        axis: where the features lie; every other axis is a row axis.
        per_row: ``mean`` or ``sum`` over the features of a row.
        mask, weight, reduction, denominator: see :func:`limbeck.losses.reduce.reduce_rows`; rows are the
            shape without ``axis``.

    Returns:
        Squared feature units; a scalar, or one value per row for ``reduction="none"``.

    Raises:
        UserError: unequal shapes, an unknown ``per_row`` or ``reduction``.

    Use :func:`smooth_l1` or :func:`huber` when a few features are huge, :func:`normalised_mse` when only the
    direction should count.
    """
    student, teacher, mask = _rows(student, teacher, axis, mask)
    values = reduce_elements((student - teacher).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def smooth_l1(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    axis: int = -1,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared near the teacher, absolute far from it, with slope 1 there: outliers cannot take over.

    Formula: per element ``d^2 / (2 beta)`` for ``d = |s - t| < beta``, else ``d - beta / 2``
    Source: Girshick, Fast R-CNN, ICCV 2015; on features: Baevski et al., data2vec, ICML 2022
    Batch-wise: no

    Arguments, shapes and errors as :func:`mse`; ``beta=0`` is the absolute difference. It equals
    ``huber(delta=beta) / beta``; :func:`huber` keeps curvature 1 near zero instead of slope 1 far away.
    """
    if beta < 0:
        raise UserError("beta", beta, "a number that is not negative")
    student, teacher, mask = _rows(student, teacher, axis, mask)
    values = reduce_elements(F.smooth_l1_loss(student, teacher, reduction="none", beta=beta), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def huber(
    student: Tensor,
    teacher: Tensor,
    *,
    delta: float = 1.0,
    axis: int = -1,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Half the square near the teacher, linear far from it.

    Formula: per element ``d^2 / 2`` for ``d = |s - t| <= delta``, else ``delta (d - delta / 2)``
    Source: Huber, Robust Estimation of a Location Parameter, 1964
    Batch-wise: no

    Arguments, shapes and errors as :func:`mse`. :func:`smooth_l1` is this over ``delta``.
    """
    if delta <= 0:
        raise UserError("delta", delta, "a positive number")
    student, teacher, mask = _rows(student, teacher, axis, mask)
    values = reduce_elements(F.huber_loss(student, teacher, reduction="none", delta=delta), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def cosine_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = -1,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One minus the cosine of every row, in [0, 2]: lengths do not count.

    Formula: ``1 - s.t / (|s| |t|)``
    Source: Sanh et al., DistilBERT, 2019 (on hidden states)
    Batch-wise: no

    Computed as ``||s/|s| - t/|t|||^2 / 2``, which is the same number and exactly zero (value and gradient) at
    equality, where ``1 - cos`` would be lost in rounding. A zero vector has no direction: its distance to any
    other vector is 1, to another zero vector 0, with zero gradient.

    Arguments and errors as :func:`mse`, without ``per_row``: a row has one angle. :func:`normalised_mse` with
    ``per_row="sum"`` is twice this, except at zero vectors.
    """
    first, second, mask = _unit_rows(student, teacher, axis, mask)
    one_is_zero = (first == 0).all(-1) != (second == 0).all(-1)
    values = 0.5 * (first - second).square().sum(-1) + 0.5 * one_is_zero
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def normalised_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = -1,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """:func:`mse` of L2-normalised rows: lengths do not count.

    Formula: ``mean_d (s_d / |s| - t_d / |t|)^2`` per row; with ``per_row="sum"``, ``2 - 2 cos``
    Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020 (with ``per_row="sum"``)
    Batch-wise: no

    A zero vector stays zero and gets no gradient (see :func:`unit_vectors`). Arguments, shapes and errors as
    :func:`mse`. :func:`cosine_distance` is the same up to a factor.
    """
    first, second, mask = _unit_rows(student, teacher, axis, mask)
    values = reduce_elements((first - second).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def normalised_l1(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = -1,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Absolute difference of L2-normalised rows: lengths do not count, and no element pulls harder than another.

    Formula: ``mean_d |s_d / |s| - t_d / |t||`` per row; with ``per_row="sum"`` the sum over d
    Source: Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023 (mean, as released)
    Batch-wise: no

    The elements of a unit vector of D features are about ``1 / sqrt(D)``, so the mean shrinks with the width; ``sum``
    grows with it. A zero vector stays zero and gets no gradient (see :func:`unit_vectors`). Arguments, shapes and
    errors as :func:`mse`.
    """
    first, second, mask = _unit_rows(student, teacher, axis, mask)
    values = reduce_elements((first - second).abs(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    axis: int = 1,
    distance: str = "squared",
    per_row: str = "mean",
    position_mask: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Distance of spatial attention maps: where the networks look, not what they see there.

    Formula: ``mean_p (Q_s / |Q_s| - Q_t / |Q_t|)_p^2`` with ``Q = mean_c A_c^2`` at every position p
    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017
    Batch-wise: no

    A row is one sample: ``[batch]``. ``distance="squared"`` is the released form, averaged over positions, or
        summed with ``per_row="sum"``; ``"euclidean"`` is the norm ``|| . ||_2`` as the paper prints it, where
        ``per_row`` has no say and the gradient at equality is taken as zero.

    Args:
        student: ``[batch, channels, *positions]``, or channels at ``axis`` (``-1`` for tokens ``[batch,
            positions, features]``).
        teacher: the same positions; the number of channels may differ.
        axis: the channel axis, not 0.
        distance: ``squared`` or ``euclidean``.
        position_mask: bool ``[batch, *positions]``, False for padding: those positions leave the maps and the
            mean.
        mask, weight, reduction, denominator: rows are samples; see :func:`limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: positions differ (pool or resize first), an unknown option.

    Use :func:`mse` with a projector when channels matter, ``positions.affinity`` when the relations of
    positions do.
    """
    check_choice("distance", distance, ("squared", "euclidean"))
    mask = check_row_mask(mask, student.shape[:1])
    if axis % student.ndim == 0:
        raise UserError("axis", axis, "an axis after the batch axis 0")
    keep = position_mask
    if mask is not None:
        rows = mask.reshape(-1, *[1] * (student.ndim - 2))
        keep = rows if keep is None else keep & rows
    first, second = (_attention_map(given, axis, keep) for given in (student, teacher))
    check_same_shape(first, second, "positions of the teacher")
    squares = (first - second).square()
    if distance == "euclidean":
        total = squares.sum(-1)
        equal = total == 0
        values = torch.where(equal, 0.0, torch.where(equal, 1.0, total).sqrt())
    elif position_mask is None:
        values = reduce_elements(squares, per_row)
    else:
        values = reduce_elements(squares, "sum")
        check_choice("per_row", per_row, PER_ROW)
        if per_row == "mean":
            values = values / position_mask.flatten(1).sum(-1).clamp_min(1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def unit_vectors(tensor: Tensor, *, axis: int = -1, mask: Tensor | None = None) -> Tensor:
    """L2-normalise, features moved to the last axis, in float32 at least, with finite gradients everywhere.

    A vector whose largest entry is below ``max(1e-8, smallest normal number of the dtype)`` counts as zero:
    it stays zero and gets zero gradient, since the true gradient, 1 / norm, could not be represented. Masked
    vectors become zero. Every other vector is first divided by its largest entry, so that squares neither
    overflow nor vanish.
    """
    rows = hide_masked(tensor.movedim(axis, -1), mask)
    if rows.shape[-1] == 0:
        return rows
    peak = rows.detach().abs().amax(-1, keepdim=True)
    # Not `>=`: a NaN must stay one and not turn into a harmless zero.
    nonzero = ~(peak < _smallest(tensor))
    scaled = torch.where(nonzero, rows / torch.where(nonzero, peak, 1.0), 0.0)
    squared_norm = torch.where(nonzero, scaled.square().sum(-1, keepdim=True), 1.0)
    return scaled * squared_norm.rsqrt()


def _rows(student: Tensor, teacher: Tensor, axis: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    check_same_shape(student, teacher, "teacher")
    student, teacher = student.movedim(axis, -1), teacher.movedim(axis, -1)
    mask = check_row_mask(mask, student.shape[:-1])
    return hide_masked(student, mask), hide_masked(teacher, mask), mask


def _unit_rows(
    student: Tensor, teacher: Tensor, axis: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    check_same_shape(student, teacher, "teacher")
    mask = check_row_mask(mask, student.movedim(axis, -1).shape[:-1])
    return unit_vectors(student, axis=axis, mask=mask), unit_vectors(teacher, axis=axis, mask=mask), mask


def reduce_elements(elements: Tensor, per_row: str) -> Tensor:
    """The value of a row from its elements ``[..., features]``: their ``mean`` or ``sum``."""
    check_choice("per_row", per_row, PER_ROW)
    return elements.mean(-1) if per_row == "mean" else elements.sum(-1)


def _smallest(tensor: Tensor) -> float:
    return max(1e-8, torch.finfo(tensor.dtype).tiny) if tensor.is_floating_point() else 1e-8


def _attention_map(features: Tensor, axis: int, keep: Tensor | None) -> Tensor:
    smallest = _smallest(features)
    features = full_precision(features.movedim(axis, -1))
    if keep is not None:
        features = torch.where(keep.unsqueeze(-1), features, 0.0)
    # The normalised map does not know the scale of its features, so take it out before squaring.
    flat = features.flatten(1, -2)
    peak = flat.detach().abs().amax((-2, -1), keepdim=True)
    nonzero = ~(peak < smallest)
    scaled = torch.where(nonzero, flat / torch.where(nonzero, peak, 1.0), 0.0)
    return unit_vectors(scaled.square().mean(-1))
