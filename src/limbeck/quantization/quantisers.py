"""Quantisers: which point every scaled value of a tensor takes, and what gradient goes back through that choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.quantization.scaling import Scaled, Scaling

GRADIENTS = ("straight_through", "truncated", "exact")
MOST_BITS = 16


@dataclass(frozen=True)
class Coded:
    """A quantised tensor as it is stored.

    Attributes:
        codes: int64 ``[n]``: the number of the point that every value takes.
        points: ``[s]``, rising.
        scaled: scales, offsets and shape; its ``values`` are not stored.
        dtype: of the tensor.
        learned: the points must be stored; uniform ones follow from their number.
        scaling: how the tensor was cut.
    """

    codes: Tensor
    points: Tensor
    scaled: Scaled
    dtype: torch.dtype
    learned: bool
    scaling: Scaling

    def decode(self) -> Tensor:
        """The quantised tensor."""
        return self.scaled.restore(self.scaling.cut(self.points[self.codes], fill=0.0)).to(self.dtype)


def levels(bits: int, scaling: Scaling) -> int:
    """How many points ``bits`` bits can number: 2^bits, or 2^bits - 1 around zero where the sign is kept."""
    fewest = 1 if scaling.lowest == 0 else 2
    if not isinstance(bits, int) or not fewest <= bits <= MOST_BITS:
        raise UserError("bits", bits, f"{fewest} to {MOST_BITS} with {scaling.kind} scaling")
    count: int = 2**bits
    return count if scaling.lowest == 0 else count - 1


def uniform_points(count: int, scaling: Scaling, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """``count`` equally spaced points over the scaled interval, both ends among them."""
    if count < 2:
        raise UserError("points", count, "2 or more")
    share = torch.arange(count, dtype=torch.float64) / (count - 1)
    return (scaling.lowest + (1 - scaling.lowest) * share).to(dtype)


def quantile_points(tensor: Tensor, count: int, scaling: Scaling) -> Tensor:
    """``count`` equally spaced quantiles (0 to 100%) of the tensor's scaled values, float32 ``[count]``."""
    scaled = scaling(tensor)
    values = scaled.values.flatten()[: scaled.count]
    if not len(values):
        return uniform_points(count, scaling)
    if count < 2:
        raise UserError("points", count, "2 or more")
    place = torch.arange(count, dtype=torch.float64) / (count - 1) * (len(values) - 1)
    # torch.quantile refuses more than 16 million values.
    ordered, below = values.double().sort().values, place.floor().long().clamp_max(len(values) - 1)
    above = (below + 1).clamp_max(len(values) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below).float()


def nearest(values: Tensor, points: Tensor) -> Tensor:
    """Number of the nearest of the rising ``points`` for every value; of two equally near ones the lower."""
    return torch.bucketize(values, (points[1:] + points[:-1]) / 2)


def uniform_codes(values: Tensor, count: int, scaling: Scaling, *, stochastic: bool = False) -> Tensor:
    """Number of the uniform point of every scaled value: rounded, or up with the probability of the fraction."""
    place = values * ((count - 1) / (1 - scaling.lowest))
    if scaling.lowest:
        place -= scaling.lowest * (count - 1) / (1 - scaling.lowest)
    if stochastic:
        below = place.floor()
        place = below + (torch.rand_like(place) < place - below)
    return place.round().clamp(0, count - 1).long()


def encode(tensor: Tensor, scaling: Scaling, *, points: Tensor | None = None, count: int | None = None) -> Coded:
    """The codes of a tensor: at the given points, or at ``count`` uniform ones."""
    scaled = scaling(tensor)
    if points is None:
        codes = uniform_codes(scaled.values, count or 0, scaling)
        used = _uniform(tensor, count, scaling)
    else:
        used = points.detach().to(scaled.values.dtype).sort().values
        codes = nearest(scaled.values, used)
    flat = codes.flatten()[: scaled.count]
    return Coded(flat, used, scaled, tensor.dtype, points is not None, scaling)


def quantise(
    weight: Tensor,
    scaling: Scaling,
    *,
    points: Tensor | None = None,
    count: int | None = None,
    gradient: str = "straight_through",
    stochastic: bool = False,
) -> Tensor:
    """``weight`` at the nearest of its points, with a gradient for the weight and for the points.

    ``w_q = alpha p_k + beta``, where k is the point nearest to ``v = (w - beta) / alpha``. With g = dL/dw_q:

    * points: ``dL/dp_j = sum of alpha g`` over the values that take point j; 0 for a point that none takes.
    * weight, ``straight_through``: g as it is. ``truncated``: w is clamped to [-1, 1] first, and g is 0 where
      ``|w| > 1`` (Hubara et al., arXiv:1609.07061). ``exact``: the scale's own dependence on the extremes is followed
      too, with the rounding alone as the identity: g, plus ``sum_i g_i (p_k(i) - v_i)`` of each bucket at its largest
      value, minus the same at its smallest.

    Args:
        weight: any shape, floating.
        points: ``[s]`` in any order; without them ``count`` uniform ones.
        gradient: as above; ``exact`` is for linear scaling.
        stochastic: round up with the probability of the fraction (uniform points only).

    Returns:
        The quantised weight, with the shape, type and memory layout of ``weight``.
    """
    if gradient not in GRADIENTS:
        raise UserError("gradient", gradient, GRADIENTS)
    if gradient == "exact" and scaling.kind != "linear":
        raise UserError("scaling", scaling.kind, "linear, for the exact gradient")
    # The graph of the sort takes every point's gradient back to its own place.
    used = _uniform(weight, count, scaling) if points is None else points.sort().values
    result: Tensor = _Quantise.apply(weight, used, scaling, gradient, points is None, stochastic)
    return result


def _uniform(weight: Tensor, count: int | None, scaling: Scaling) -> Tensor:
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return _kept_points(count or 0, scaling, dtype, weight.device)


@lru_cache(maxsize=32)
def _kept_points(count: int, scaling: Scaling, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform points, made once: every step asks for them once per tensor."""
    # Also where the first to ask does so in inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False):
        return uniform_points(count, scaling, dtype=dtype).to(device)


class _Quantise(torch.autograd.Function):
    """Values of :func:`quantise` exactly at the points; a sum such as ``w + (q - w).detach()`` would round them off."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, points: Tensor, scaling: Scaling, gradient: str, uniform: bool, stochastic: bool
    ) -> Tensor:
        inside = weight.clamp(-1, 1) if gradient == "truncated" else weight
        scaled = scaling(inside)
        used = points.to(scaled.values.dtype)
        if uniform:
            codes = uniform_codes(scaled.values, len(used), scaling, stochastic=stochastic)
        else:
            codes = nearest(scaled.values, used)
        rounded = used[codes]
        ctx.scaling, ctx.count, ctx.dtype = scaling, len(points), points.dtype
        outside = weight.abs() > 1 if gradient == "truncated" else None
        error = rounded - scaled.values if gradient == "exact" else None
        extremes = _extremes(scaled) if gradient == "exact" else (None, None)
        ctx.save_for_backward(codes, scaled.scale, outside, error, *extremes)
        return torch.empty_like(weight).copy_(scaled.restore(rounded))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        codes, scale, outside, error, highest, lowest = ctx.saved_tensors
        scaling: Scaling = ctx.scaling
        weight_grad = points_grad = None
        if error is not None or ctx.needs_input_grad[1]:
            pieces = scaling.cut(grad, fill=0.0)
        if ctx.needs_input_grad[1]:
            sums = torch.zeros(ctx.count, dtype=pieces.dtype, device=pieces.device)
            points_grad = sums.index_add_(0, codes.flatten(), (scale * pieces).flatten()).to(ctx.dtype)
        if ctx.needs_input_grad[0]:
            weight_grad = grad if outside is None else torch.where(outside, 0.0, grad)
            if error is not None and grad.numel():
                flat = grad.reshape(-1).to(pieces.dtype).clone()
                by_scale = (pieces * error).sum(dim=1)
                flat.index_add_(0, highest, by_scale).index_add_(0, lowest, -by_scale)
                weight_grad = torch.empty_like(grad).copy_(flat.view(grad.shape))
        return weight_grad, points_grad, None, None, None, None


def _extremes(scaled: Scaled) -> tuple[Tensor, Tensor]:
    """Where in the flat tensor the largest and the smallest value of every bucket are; of equal ones, one."""
    buckets, size = scaled.values.shape
    begin = torch.arange(buckets, device=scaled.values.device) * size
    # An extreme among the filling is the tensor's last value.
    highest, lowest = ((begin + place).clamp_max(max(scaled.count - 1, 0)) for place in _places(scaled.values))
    return highest, lowest


def _places(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.numel() == 0:
        nothing = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        return nothing, nothing
    return values.argmax(dim=1), values.argmin(dim=1)
