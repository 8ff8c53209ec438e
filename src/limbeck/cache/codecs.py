"""How a signal lies on disk: exact, cast to a shorter float, in 8 or 4 bits with scales, as words of a codebook, or the
most probable classes, plainly (``topk``) or packed into less than half of the bytes (``packed``, ``mass``, ``above``).

A codec sees rows (samples, or positions of a ragged signal) along the first axis and gives parts with the
same first axis, so that any selection of rows can be gathered before it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from limbeck.cache.contract import Codec, Parts, dense_value, most_probable
from limbeck.cache.packed import BITS, MOST, Packed
from limbeck.cache.vectors import Even, ProductQuantizer
from limbeck.errors import UserError
from limbeck.signals import SparseLogits

NAMES = (
    "exact", "float32", "float16", "bfloat16", "int8", "int4", "pq:M", "topk:K", "topk:K:float32", "topk:K:bfloat16",
    "packed:K", "mass:P:K", "above:P:K",
)  # fmt: skip


class Exact(Codec):
    """The tensor as it is, of any dtype; what integers and masks always get."""

    name, error = "exact", "0"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        return {"value": dense_value(value, self.name)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        return parts["value"]

    def bound(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


class Cast(Codec):
    """A shorter float, rounded to nearest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.name = str(dtype).removeprefix("torch.")
        limits = torch.finfo(dtype)
        self.unit = limits.eps / 2
        self.least = limits.smallest_normal * limits.eps / 2
        self.error = f"|x| * {self.unit:.3g} (at least {self.least:.3g}), for |x| up to {limits.max:.6g}"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        return {"value": dense_value(value, self.name).to(self.dtype)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        return parts["value"] if dtype is None else parts["value"].to(dtype)

    def bound(self, value: Tensor) -> Tensor:
        wide = value.double().abs()
        exact = torch.promote_types(value.dtype, self.dtype) == self.dtype
        return torch.zeros_like(wide) if exact else (wide * self.unit).clamp_min(self.least)

    def in_range(self, value: Tensor) -> Tensor:
        return ~torch.isinf(value.to(self.dtype)) | torch.isinf(value)


class TopK(Codec):
    """The ``k`` largest log-probabilities, their classes, and the exact log-mass of all others.

    Log-probabilities are float16 (or float32, bfloat16), the rest mass float32, a class takes 1, 2 or 4 bytes by the
    size of the vocabulary. After decoding, values and rest are normalised again, so that they are a proper
    distribution over ``k + 1`` outcomes and a divergence on them is never negative. They hold at temperature
    1: the rest mass at another temperature cannot be known from them.
    """

    def __init__(self, k: int, dtype: torch.dtype = torch.float16) -> None:
        if k < 1:
            raise UserError("codec", f"topk:{k}", "topk:K with K of at least 1")
        self.most, self.dtype = k, dtype
        self.name = f"topk:{k}" + ("" if dtype == torch.float16 else f":{str(dtype).removeprefix('torch.')}")
        self.unit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        self.error = f"{self.unit:.3g} * |smallest kept log-probability|; the rest is spread evenly"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        sparse = most_probable(value, self.most, self.name)
        values = sparse.values
        if self.dtype == torch.float16:
            # A log-probability below float16's range is no probability at all in float32 either.
            values = torch.where(torch.isneginf(values), values, values.clamp_min(-65504.0))
        return {
            "value": values.to(self.dtype),
            "index": _pack_classes(sparse.indices, sparse.size),
            "rest": sparse.rest.float(),
        }

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> SparseLogits:
        values, rest = parts["value"].float(), parts["rest"]
        if self.dtype != torch.float32:
            total = torch.logaddexp(values.logsumexp(-1), rest)
            values, rest = values - total.unsqueeze(-1), rest - total
        return SparseLogits(values, _unpack_classes(parts["index"]), rest, int(shape[-1]))

    def bound(self, value: Tensor) -> Tensor:
        """Of the kept log-probabilities, in falling order: ``[..., k]``."""
        kept = value.double().log_softmax(-1).topk(self.most, dim=-1).values
        rounding = 8 * torch.finfo(torch.float32).eps * (1 + value.double().abs().amax(-1, keepdim=True))
        return (kept.abs().amax(-1, keepdim=True) * self.unit + 2**-24 + rounding).expand_as(kept)


def codec(name: str) -> Codec:
    """The codec of a name; :data:`NAMES` lists them. Packed ones may end in the bits of a square root, ``:5``."""
    kind, *options = name.split(":")
    try:
        if kind == "topk" and len(options) in (1, 2):
            return TopK(int(options[0]), _FLOATS[options[1] if len(options) == 2 else "float16"])
        if kind in ("packed", "mass", "above"):
            return _packed(kind, options)
        if kind == "pq" and len(options) == 1:
            return ProductQuantizer(int(options[0]))
        if not options:
            return _DENSE[kind]()
    except (KeyError, ValueError, IndexError):
        pass
    raise UserError("codec", name, ", ".join(NAMES))


def _packed(kind: str, options: list[str]) -> Packed:
    threshold = 0.0 if kind == "packed" else float(options.pop(0))
    most, bits = int(options[0]), int(options[1]) if len(options) > 1 else BITS
    if len(options) > 2 or not 1 <= most <= MOST or not 1 <= bits <= 16 or not 0 <= threshold <= 1:
        hint = f"K of 1 to {MOST}, P of 0 to 1, 1 to 16 bits"
        raise UserError("codec", ":".join([kind, *options]), "packed:K, mass:P:K or above:P:K, and :BITS", hint)
    return Packed(most, kind, threshold, bits)


_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DENSE: dict[str, Callable[[], Codec]] = {
    "exact": Exact,
    "int8": partial(Even, 8),
    "int4": partial(Even, 4),
    **{name: partial(Cast, dtype) for name, dtype in _FLOATS.items()},
}


def _pack_classes(indices: Tensor, size: int) -> Tensor:
    if size <= 2**8:
        return indices.to(torch.uint8)
    # 16 bits reach 65,536 classes when they are counted from the middle.
    return (indices - 2**15).to(torch.int16) if size <= 2**16 else indices.to(torch.int32)


def _unpack_classes(packed: Tensor) -> Tensor:
    return packed.long() + 2**15 if packed.dtype == torch.int16 else packed.long()
