"""How a signal lies on disk: exact, cast to a shorter float, int8 with scales, or the k largest
log-probabilities.

A codec sees rows (samples, or positions of a ragged signal) along the first axis and gives parts with the
same first axis, so that any selection of rows can be gathered before it is decoded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals import SparseLogits

Parts = Mapping[str, Tensor]
NAMES = ("exact", "float32", "float16", "bfloat16", "int8", "topk:K", "topk:K:float32")


class Codec(ABC):
    """One way to store a signal.

    Attributes:
        name: what the manifest calls it.
        error: the bound on a decoded element, in words; :meth:`bound` computes it.
    """

    name: str
    error: str

    @abstractmethod
    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        """Parts of ``value`` ``[N, ...]``, each with ``N`` rows."""

    @abstractmethod
    def decode(
        self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32
    ) -> Tensor | SparseLogits:
        """The signal of ``parts``; ``shape`` is that of one row, ``dtype`` None keeps what is stored."""

    @abstractmethod
    def bound(self, value: Tensor) -> Tensor:
        """Largest possible ``|decode(encode(value)) - value|`` by element (top-k: log-probabilities)."""

    def in_range(self, value: Tensor) -> Tensor:
        """Which finite elements of ``value`` this codec can hold."""
        return torch.ones_like(value, dtype=torch.bool)

    def roundtrip(self, value: Tensor | SparseLogits) -> Tensor | SparseLogits:
        """What a reader gets back of ``value``, on the same device."""
        shape = (*value.values.shape[1:-1], value.size) if isinstance(value, SparseLogits) else value.shape[1:]
        return self.decode(self.encode(value), shape)


class Exact(Codec):
    """The tensor as it is, of any dtype; what integers and masks always get."""

    name, error = "exact", "0"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        return {"value": _dense(value, self.name)}

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
        return {"value": _dense(value, self.name).to(self.dtype)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        return parts["value"] if dtype is None else parts["value"].to(dtype)

    def bound(self, value: Tensor) -> Tensor:
        wide = value.double().abs()
        exact = torch.promote_types(value.dtype, self.dtype) == self.dtype
        return torch.zeros_like(wide) if exact else (wide * self.unit).clamp_min(self.least)

    def in_range(self, value: Tensor) -> Tensor:
        return ~torch.isinf(value.to(self.dtype)) | torch.isinf(value)


class Int8(Codec):
    """256 even steps between the smallest and the largest element of every row (last axis).

    The row's step and middle are float32, so a constant row is exact, a shift costs nothing, and a scalar
    signal is exact too.
    """

    name = "int8"
    error = "(max - min of the row) / 510, and float32 rounding"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        rows = self._rows(_dense(value, self.name).float())
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        middle = low / 2 + high / 2
        step = high / 255 - low / 255
        levels = ((rows - middle) / step.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-128, 127)
        return {"value": levels.to(torch.int8), "scale": step.squeeze(-1), "offset": middle.squeeze(-1)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        levels = parts["value"].float()
        value = torch.addcmul(parts["offset"].unsqueeze(-1), levels, parts["scale"].unsqueeze(-1))
        return value.reshape(len(value), *shape).to(dtype or torch.float32)

    def bound(self, value: Tensor) -> Tensor:
        rows = self._rows(value.double())
        spread = rows.amax(-1, keepdim=True) - rows.amin(-1, keepdim=True)
        # Middle, step and product are rounded to float32: a few units of the largest element.
        rounding = rows.abs().amax(-1, keepdim=True) * 4 * torch.finfo(torch.float32).eps
        return (spread / 510 + rounding).expand_as(rows).reshape(value.shape)

    def in_range(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)

    @staticmethod
    def _rows(value: Tensor) -> Tensor:
        return value.unsqueeze(-1) if value.dim() == 1 else value


class TopK(Codec):
    """The ``k`` largest log-probabilities, their classes, and the exact log-mass of all others.

    Log-probabilities are float16 (or float32), the rest mass float32, a class takes 1, 2 or 4 bytes by the
    size of the vocabulary. After decoding, values and rest are normalised again, so that they are a proper
    distribution over ``k + 1`` outcomes and a divergence on them is never negative. They hold at temperature
    1: the rest mass at another temperature cannot be known from them.
    """

    def __init__(self, k: int, dtype: torch.dtype = torch.float16) -> None:
        if k < 1:
            raise UserError("codec", f"topk:{k}", "topk:K with K of at least 1")
        self.k, self.dtype = k, dtype
        self.name = f"topk:{k}" + ("" if dtype == torch.float16 else f":{str(dtype).removeprefix('torch.')}")
        self.error = (
            "0" if dtype == torch.float32 else "2 * 2**-11 * |smallest kept log-probability|; the rest is spread evenly"
        )

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        sparse = value if isinstance(value, SparseLogits) else SparseLogits.from_dense(value, self.k)
        sparse = self._cut(sparse)
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
        kept = value.double().log_softmax(-1).topk(self.k, dim=-1).values
        rounding = 8 * torch.finfo(torch.float32).eps * (1 + value.double().abs().amax(-1, keepdim=True))
        if self.dtype == torch.float32:
            return rounding.expand_as(kept)
        return (kept.abs().amax(-1, keepdim=True) * 2**-10 + 2**-24 + rounding).expand_as(kept)

    def _cut(self, sparse: SparseLogits) -> SparseLogits:
        if sparse.values.shape[-1] < self.k:
            raise UserError(
                "codec", self.name, f"topk:K with K up to {sparse.values.shape[-1]}, which the source gives"
            )
        kept, order = sparse.values.topk(self.k, dim=-1)
        if sparse.values.shape[-1] == self.k:
            rest = sparse.rest
        else:
            dropped = sparse.values.scatter(-1, order, -torch.inf).logsumexp(-1)
            rest = torch.logaddexp(sparse.rest, dropped)
        return SparseLogits(kept, sparse.indices.gather(-1, order), rest, sparse.size)


def codec(name: str) -> Codec:
    """The codec of a name; :data:`NAMES` lists them."""
    kind, _, options = name.partition(":")
    if kind == "topk":
        count, _, dtype = options.partition(":")
        if count.isdigit() and dtype in ("", "float16", "float32"):
            return TopK(int(count), torch.float32 if dtype == "float32" else torch.float16)
    elif not options:
        if kind == "exact":
            return Exact()
        if kind == "int8":
            return Int8()
        if kind in ("float32", "float16", "bfloat16"):
            return Cast(getattr(torch, kind))
    raise UserError("codec", name, NAMES)


def _dense(value: Tensor | SparseLogits, name: str) -> Tensor:
    if isinstance(value, SparseLogits):
        raise UserError(
            "codec", name, f"topk:K with K up to {value.values.shape[-1]}", "this source gives top-k logits"
        )
    return value


def _pack_classes(indices: Tensor, size: int) -> Tensor:
    if size <= 2**8:
        return indices.to(torch.uint8)
    # 16 bits reach 65,536 classes when they are counted from the middle.
    return (indices - 2**15).to(torch.int16) if size <= 2**16 else indices.to(torch.int32)


def _unpack_classes(packed: Tensor) -> Tensor:
    return packed.long() + 2**15 if packed.dtype == torch.int16 else packed.long()
