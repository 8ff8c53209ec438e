"""Score distillation: a generator learns from two denoisers, that of the data and that of its own samples.

``x`` are generated samples ``[B, ...]``, a row is a sample; everything else has the shape of ``x``. ``per_row`` says
how the elements of a sample become its value: ``sum``, or ``mean``, with which the step does not grow with the
resolution. ``mask`` and ``weight`` are ``[B]``.

| loss | gradient on x (``per_row="sum"``) |
|---|---|
| :func:`toward_target` | the given direction g: SDS, VSD, DMD differ in g alone |
| :func:`score_identity` | through both denoisers: a divergence of the two scores |
| :func:`denoising` | trains a denoiser |
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.features import reduce_elements
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows


def toward_target(
    x: Tensor,
    direction: Tensor,
    *,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """A loss whose gradient is a given direction: half the squared distance to a target one step away.

    Formula: ``1/2 mean (x - stop(x - g))^2``; its gradient on x is ``g`` over the number of elements
    Source: Poole et al., DreamFusion, 2022 (the gradient); Nguyen and Tran, SwiftBrush, CVPR 2024 (written as a target)
    Batch-wise: no

    Args:
        x: generated samples ``[B, ...]``.
        direction: g, a constant: nothing flows into it. ``eps_teacher - eps_fake`` is VSD (and DMD),
            ``eps_teacher - eps`` is SDS, each with its weight.
        per_row: ``mean`` or ``sum`` over the elements of a sample.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    The value is half the mean square of g and says nothing about progress: it is small where the two denoisers agree,
    rightly or wrongly. :func:`score_identity` lets the gradient into the denoisers instead.
    """
    check_same_shape(x, direction, "direction")
    x, g, mask = _samples(x, direction, mask)
    target = (x - g).detach()
    values = 0.5 * reduce_elements((x - target).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def score_identity(
    x: Tensor,
    real: Tensor,
    fake: Tensor,
    *,
    alpha: float = 1.0,
    per_row: str = "sum",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """SiD: an estimate of the Fisher divergence of generator and data that is sound for an inexact fake score.

    Formula: ``sum (y_r - y_f) [(y_r - x) - alpha (y_r - y_f)]``; alpha = 1: ``sum (y_r - y_f) (y_f - x)``
    Source: Zhou et al., Score identity Distillation, ICML 2024
    Batch-wise: no

    Args:
        x: generated samples ``[B, ...]``.
        real: y_r, the clean samples that the frozen teacher sees behind the noised x.
        fake: y_f, those of the fake denoiser. **Both must carry their gradient to x**, with frozen weights; without it
            another method results, and no error.
        alpha: 1 for guided and adversarial forms, 1.2 for EDM networks. At alpha = 1/2 an exact fake score makes the
            expectation half of the divergence.
        per_row: ``mean`` or ``sum`` over the elements of a sample.
        weight: ``[B]``, usually 1 / :func:`score_identity_scale`.
        mask, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    It may be negative. :func:`toward_target` needs no gradient through the denoisers.
    """
    check_same_shape(x, real, "real")
    check_same_shape(x, fake, "fake")
    x, real, mask = _samples(x, real, mask)
    fake = _flat(fake, mask)
    gap = real - fake
    values = reduce_elements(gap * ((real - x) - alpha * gap), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def score_identity_scale(x: Tensor, real: Tensor, smallest: float = 1e-5) -> Tensor:
    """``mean |x - y_r|`` per sample, ``[B]``, a constant, at least ``smallest``: SiD and DMD divide by it.

    Noisy levels, at which the teacher's guess is far from x, then weigh no more than the others.
    """
    apart: Tensor = (full_precision(x) - full_precision(real)).detach().abs().flatten(1).mean(1)
    return apart.clamp_min(smallest)


def denoising(
    prediction: Tensor,
    target: Tensor,
    *,
    per_row: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Denoising score matching: squared error of a prediction of the noise (or x0, or v).

    Formula: ``w_t mean (prediction - target)^2``
    Source: Ho et al., Denoising Diffusion Probabilistic Models, 2020
    Batch-wise: no

    Args:
        prediction, target: ``[B, ...]``, both of one kind.
        per_row: ``mean`` or ``sum`` over the elements of a sample.
        weight: ``[B]``, usually a function of the time: alpha_t^2 weighs an error of eps as SwiftBrush does.
        mask, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    :func:`~limbeck.losses.features.mse` has one axis of features; here all axes but the first are one sample.
    """
    check_same_shape(prediction, target, "target")
    prediction, target, mask = _samples(prediction, target, mask)
    values = reduce_elements((prediction - target).square(), per_row)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _samples(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if first.dim() < 2:
        raise UserError("x", list(first.shape), "[B, ...] with at least one axis beside the batch")
    mask = check_row_mask(mask, first.shape[:1])
    return _flat(first, mask), _flat(second, mask), mask


def _flat(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return hide_masked(full_precision(tensor).flatten(1), mask)


def non_finite_rows(*tensors: Tensor) -> Tensor:
    """``[B]``, True where any of ``tensors`` ``[B, ...]`` holds NaN or infinity: what a mask leaves out."""
    bad = [~torch.isfinite(tensor.detach()).flatten(1).all(1) for tensor in tensors]
    return torch.stack(bad).any(0)
