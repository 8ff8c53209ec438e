"""Losses of segmentation masks. A row is one mask: logits and targets are ``[..., height, width]``, rows are ``[...]``.

``position_mask`` (bool, broadcastable to the logits) leaves out pixels: padding, or what nobody labelled. The losses of
SAM are ``20 * mask_focal + mask_dice + iou_regression``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.reduce import hide_masked, reduce_rows


def mask_focal(
    student_logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    position_mask: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Binary cross-entropy in which pixels that are right already hardly count.

    Formula: ``mean_p a_p (1 - q_p)^gamma (-log q_p)``, q the probability of the target, ``a = alpha`` for object and
        ``1 - alpha`` for ground
    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; for masks: Kirillov et al., Segment Anything
    Batch-wise: no

    Args:
        student_logits: ``[..., H, W]``.
        target: the same shape, bool or numbers in [0, 1]; a number between is a mixture of both.
        gamma: 0 for plain cross-entropy. alpha: None for no balance at all.
        position_mask: pixels that count; the mean is over them.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: unequal shapes, a negative gamma.

    It sees every pixel alike, so small objects weigh little; :func:`mask_dice` weighs every object alike.
    """
    if gamma < 0:
        raise UserError("gamma", gamma, "a number that is not negative")
    logits, truth, mask, keep = _pixels(student_logits, target, mask, position_mask)
    q = logits.sigmoid()
    # Both ways in log space: sure and wrong stays linear instead of infinite.
    inside = functional.softplus(-logits) * _power(1 - q, gamma) * (1 if alpha is None else alpha)
    outside = functional.softplus(logits) * _power(q, gamma) * (1 if alpha is None else 1 - alpha)
    values = truth * inside + (1 - truth) * outside
    rows = values.mean((-2, -1)) if keep is None else _mean(values, keep)
    return reduce_rows(rows, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def mask_dice(
    student_logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    position_mask: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One minus the overlap of probabilities and target: objects of all sizes count alike.

    Formula: ``1 - (2 sum_p q_p y_p + smooth) / (sum_p q_p + sum_p y_p + smooth)``, ``q = sigmoid(student)``
    Source: Milletari et al., V-Net, 3DV 2016; smooth = 1 as in Segment Anything
    Batch-wise: no

    ``smooth`` (in pixels) makes an empty mask that is predicted empty right. Arguments, shapes and errors as
    :func:`mask_focal`.
    """
    logits, truth, mask, keep = _pixels(student_logits, target, mask, position_mask)
    q = logits.sigmoid()
    if keep is not None:
        q, truth = q * keep, truth * keep
    both, sizes = (q * truth).sum((-2, -1)), q.sum((-2, -1)) + truth.sum((-2, -1))
    rows = 1 - (2 * both + smooth) / (sizes + smooth)
    return reduce_rows(rows, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def iou_regression(
    predicted: Tensor,
    student_logits: Tensor,
    target: Tensor,
    *,
    position_mask: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared error of a network's own guess how good its mask is.

    Formula: ``(predicted - IoU(student > 0, y > 1/2))^2``; the IoU is a constant
    Source: Kirillov et al., Segment Anything, ICCV 2023
    Batch-wise: no

    Args:
        predicted: ``[...]``. student_logits, target: ``[..., H, W]``. The others as :func:`mask_focal`.
    """
    logits, truth, mask, keep = _pixels(student_logits.detach(), target, mask, position_mask)
    check_same_shape(predicted, logits[..., 0, 0], "student_logits without its last two axes")
    overlap = mask_overlap(logits > 0, truth > 0.5, keep)
    rows = (hide_masked(predicted, mask, 0) - overlap).square()
    return reduce_rows(rows, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def mask_overlap(first: Tensor, second: Tensor, position_mask: Tensor | None = None) -> Tensor:
    """Intersection over union of bool masks ``[..., H, W]``, ``[...]``; two empty masks have 1, as they agree."""
    both, either = first & second, first | second
    if position_mask is not None:
        both, either = both & position_mask, either & position_mask
    union = either.sum((-2, -1))
    return torch.where(union == 0, 1.0, both.sum((-2, -1)) / union.clamp_min(1))


def _pixels(
    logits: Tensor, target: Tensor, mask: Tensor | None, position_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    check_same_shape(logits, target, "target")
    if logits.dim() < 2:
        raise UserError("student_logits", list(logits.shape), "[..., height, width]")
    mask = check_row_mask(mask, logits.shape[:-2])
    keep = None if position_mask is None else position_mask.expand(logits.shape)
    logits, truth = (hide_masked(given, mask, 2) for given in (logits, target))
    if keep is not None:
        logits, truth = torch.where(keep, logits, 0.0), torch.where(keep, truth, 0.0)
    return logits, truth.to(logits.dtype), mask, keep


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, values, 0.0).sum((-2, -1)) / keep.sum((-2, -1)).clamp_min(1)


def _power(base: Tensor, exponent: float) -> Tensor:
    if exponent == 0:
        return torch.ones_like(base)
    # torch.pow's gradient at 0 is infinite for exponents below 1.
    return base.square() if exponent == 2 else base.clamp_min(torch.finfo(base.dtype).tiny) ** exponent
