"""Scaling a tensor, bucket by bucket, to the interval in which quantisation points lie, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UserError

KINDS = ("linear", "absmax", "absnorm")
# Below this a bucket is constant, and its values stay what they are.
SMALLEST_RANGE = 1e-10


@dataclass(frozen=True)
class Scaled:
    """A tensor cut into buckets, scaled.

    Attributes:
        values: ``[buckets, size]``, in [0, 1] (``linear``) or [-1, 1]; the last bucket is filled up with the tensor's
            last value.
        scale, offset: ``[buckets, 1]``; a value is ``scale * v + offset``. Only ``linear`` has an offset.
        shape: of the tensor.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor | None
    shape: torch.Size

    @property
    def count(self) -> int:
        """Numbers of the tensor, without the filling."""
        return self.shape.numel()

    def restore(self, values: Tensor | None = None) -> Tensor:
        """Undo the scaling: of ``values`` ``[buckets, size]``, or of the scaled ones themselves."""
        values = (self.values if values is None else values) * self.scale
        values = values if self.offset is None else values + self.offset
        return values.flatten()[: self.count].view(self.shape)


@dataclass(frozen=True)
class Scaling:
    """``v = (w - beta) / alpha`` for every bucket of consecutive values.

    Attributes:
        kind: ``linear``: beta = min, alpha = max - min, so that v lies in [0, 1] and the extremes are exact.
            ``absmax``: alpha = max |w|, beta = 0, v in [-1, 1], so that 0 is exact and the signs are kept.
            ``absnorm``: alpha = the bucket's Euclidean norm, beta = 0.
        bucket_size: values that share a scale; ``None``: the whole tensor. A tensor that is shorter is one short
            bucket, whose scale takes no more room than another's.

    An outlier sets the scale of its bucket: with one scale per tensor a single large weight leaves few levels to all
    others.
    """

    kind: str = "linear"
    bucket_size: int | None = 256

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("scaling", self.kind, KINDS)
        if self.bucket_size is not None and self.bucket_size < 1:
            raise UserError("bucket_size", self.bucket_size, "1 or more values, or None for the whole tensor")

    @property
    def lowest(self) -> float:
        """The least scaled value: 0, or -1 where the sign is kept."""
        return 0.0 if self.kind == "linear" else -1.0

    def __call__(self, tensor: Tensor) -> Scaled:
        """Scale ``tensor`` of any shape, in float32 at least.

        Raises:
            UserError: NaN or infinite values, or a tensor that is not floating.
        """
        if not tensor.is_floating_point():
            raise UserError("tensor to quantise", str(tensor.dtype), "a floating one")
        buckets = self.cut(tensor.detach())
        low, high = buckets.amin(dim=1, keepdim=True), buckets.amax(dim=1, keepdim=True)
        # A sum is finite only if every number of it is.
        if not math.isfinite(float((high - low).sum())):
            raise UserError("tensor to quantise", "NaN or infinite values", "finite ones")
        if self.kind == "linear":
            scale, offset = _safe(high - low), low
            return Scaled((buckets - low) / scale, scale, offset, tensor.shape)
        if self.kind == "absmax":
            size = buckets.abs().amax(dim=1, keepdim=True)
        else:
            size = torch.linalg.vector_norm(self.cut(tensor.detach(), fill=0.0), dim=1, keepdim=True)
        scale = _safe(size)
        return Scaled(buckets / scale, scale, None, tensor.shape)

    def cut(self, tensor: Tensor, *, fill: float | None = None) -> Tensor:
        """``[buckets, size]``, the last bucket filled up with the last value, or with ``fill``."""
        flat = tensor.reshape(-1)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        count = len(flat)
        size = min(self.bucket_size or count, count)
        if size == 0:
            return flat.view(0, 1)
        missing = -count % size
        if missing:
            end = flat[-1:].expand(missing) if fill is None else flat.new_full((missing,), fill)
            flat = torch.cat([flat, end])
        return flat.view(-1, size)


def _safe(scale: Tensor) -> Tensor:
    return torch.where(scale < SMALLEST_RANGE, 1.0, scale)
