"""Distances between two sets of samples, each seen as draws from a distribution: characteristic functions, means, MMD.

The sets need not have the same number of members, and no member of one belongs to a member of the other. Leading axes
are groups (classes), and a *row* of these losses is a group. When to use which: :func:`mean_discrepancy` is the
cheapest and sees the mean alone; :func:`gaussian_mmd` sees the whole distribution at the cost of all pairs;
:func:`characteristic_discrepancy` sees it at a cost linear in the samples, and its frequencies can be learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_row_mask
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows


def characteristic_discrepancy(
    student: Tensor,
    teacher: Tensor,
    frequencies: Tensor,
    *,
    amplitude_weight: float = 0.5,
    phase_weight: float = 0.5,
    floor: float = 1e-12,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Distance of two empirical characteristic functions, in amplitude (diversity) and phase (realism).

    Formula: ``mean_t sqrt(alpha (|a| - |b|)^2 + beta 2 (|a||b| - Re a conj(b)))``, ``a(t) = mean_n exp(i t.x_n)`` of
        the student's samples, ``b`` of the teacher's
    Source: Wang et al., Dataset Distillation with Neural Characteristic Function, CVPR 2025
    Batch-wise: yes, over the samples of a group; groups are independent

    Args:
        student, teacher: samples ``[..., N, D]`` and ``[..., M, D]``; the leading axes are groups.
        frequencies: t, ``[F, D]`` for all groups or ``[..., F, D]``, in one over the units of the samples: with
            ``t ~ N(0, I)`` and unit vectors, the products are of order one. Much larger ones wrap, and the gradient
            becomes noise.
        amplitude_weight, phase_weight: alpha and beta. At one half each this is ``mean_t |a - b| / sqrt(2)``.
        floor: added under each square root, whose slope would be infinite at 0; ``sqrt(floor)`` is taken off again.
        mask, weight, reduction, denominator: of groups; see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: shapes that do not fit, a negative weight.

    Where a characteristic function vanishes the phase has no meaning, and phase alone (``amplitude_weight=0``) has a
    slope there that only the floor bounds; the even weights have none.

    Two distributions are equal exactly if this is zero for all t; :func:`mean_discrepancy` is blind to anything but
    the mean. Gradients flow to both sets and to the frequencies.
    """
    mask = _check(student, teacher, mask)
    if frequencies.dim() < 2 or frequencies.shape[-1] != student.shape[-1]:
        raise UserError("frequencies", f"shape {list(frequencies.shape)}", f"[F, {student.shape[-1]}]")
    if amplitude_weight < 0 or phase_weight < 0:
        raise UserError("amplitude_weight, phase_weight", (amplitude_weight, phase_weight), "numbers of 0 or more")
    ours = characteristic_function(hide_masked(student, mask, 2), frequencies)
    theirs = characteristic_function(hide_masked(teacher, mask, 2), frequencies)
    if amplitude_weight == phase_weight:
        # The two terms are then one distance in the plane, at a third of the cost.
        squared = amplitude_weight * ((ours[0] - theirs[0]).square() + (ours[1] - theirs[1]).square())
    else:
        amplitude, phase = amplitude_and_phase(ours, theirs, floor)
        squared = amplitude_weight * amplitude + phase_weight * phase
    values = ((squared + floor).sqrt() - floor**0.5).mean(dim=-1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def characteristic_function(samples: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part ``[..., F]`` of ``mean_n exp(i t.x_n)``, samples ``[..., N, D]``, t ``[..., F, D]``."""
    samples = full_precision(samples)
    angles = samples @ frequencies.to(samples.dtype).transpose(-1, -2)
    return angles.cos().mean(dim=-2), angles.sin().mean(dim=-2)


def amplitude_and_phase(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], floor: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """The parts of ``|a - b|^2``: ``(|a| - |b|)^2`` and ``2 |a||b| (1 - cos(angle between))``.

    Args:
        first, second: real and imaginary parts of a and b.
        floor: added under the root of a length, which has no slope at 0.
    """
    one, other = ((real.square() + imaginary.square() + floor).sqrt() for real, imaginary in (first, second))
    product, dot = one * other, first[0] * second[0] + first[1] * second[1]
    # Where the angle is small, product - dot would cancel to noise; (product^2 - dot^2) / (product + dot) does not.
    cross = first[0] * second[1] - first[1] * second[0]
    acute = dot > 0
    apart = torch.where(acute, cross.square() / torch.where(acute, product + dot, 1.0), product - dot)
    return (one - other).square(), 2 * apart


def mean_discrepancy(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of two means: MMD with a linear kernel, as distribution matching (DM) uses it.

    Formula: ``sum_d (mean_n x_nd - mean_m y_md)^2``
    Source: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023
    Batch-wise: yes, over the samples of a group; groups are independent

    Args:
        student, teacher: samples ``[..., N, D]`` and ``[..., M, D]``; the leading axes are groups.
        mask, weight, reduction, denominator: of groups; see :func:`~limbeck.losses.reduce.reduce_rows`.

    It cannot tell distributions of one mean apart: :func:`gaussian_mmd` and :func:`characteristic_discrepancy` can.
    """
    mask = _check(student, teacher, mask)
    gaps = hide_masked(student, mask, 2).mean(dim=-2) - hide_masked(teacher, mask, 2).mean(dim=-2)
    values = gaps.square().sum(dim=-1)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def gaussian_mmd(
    student: Tensor,
    teacher: Tensor,
    *,
    bandwidth: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel, over all pairs (the biased, non-negative estimate).

    Formula: ``E k(x, x') - 2 E k(x, y) + E k(y, y')``, ``k(x, y) = exp(-|x - y|^2 / (2 h^2))``
    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012
    Batch-wise: yes, over the samples of a group; groups are independent

    Args:
        student, teacher: samples ``[..., N, D]`` and ``[..., M, D]``; the leading axes are groups.
        bandwidth: h, in the units of the samples.
        mask, weight, reduction, denominator: of groups; see :func:`~limbeck.losses.reduce.reduce_rows`.

    It is the mean of ``|a(t) - b(t)|^2`` over ``t ~ N(0, I / h^2)``: :func:`characteristic_discrepancy` with such
    frequencies is its cousin without pairs.
    """
    mask = _check(student, teacher, mask)
    if not bandwidth > 0:
        raise UserError("bandwidth", bandwidth, "a positive number")
    ours, theirs = hide_masked(student, mask, 2), hide_masked(teacher, mask, 2)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        gaps = (first.unsqueeze(-2) - second.unsqueeze(-3)).square().sum(dim=-1)
        return (-gaps / (2 * bandwidth**2)).exp().mean(dim=(-1, -2))

    values = kernel(ours, ours) - 2 * kernel(ours, theirs) + kernel(theirs, theirs)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _check(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor | None:
    """Samples ``[..., N, D]`` with the same groups and features, none of the sets empty."""
    shapes = student.shape, teacher.shape
    fits = student.dim() >= 2 and teacher.dim() >= 2 and shapes[0][:-2] == shapes[1][:-2]
    if not fits or shapes[0][-1] != shapes[1][-1] or not shapes[0][-2] or not shapes[1][-2]:
        raise UserError("samples", f"shapes {list(shapes[0])} and {list(shapes[1])}", "[..., N, D] and [..., M, D]")
    return check_row_mask(mask, student.shape[:-2])
