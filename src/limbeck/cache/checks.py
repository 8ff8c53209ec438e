"""What a writer looks at before it stores a batch, and how it takes the batch apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from limbeck.cache.codecs import codec
from limbeck.cache.contract import Codec
from limbeck.cache.index import Int64, as_keys
from limbeck.cache.manifest import SignalSpec, dtype_name
from limbeck.errors import UserError
from limbeck.signals import Signals, SparseLogits


def keys_of(what: str, values: Tensor) -> Int64:
    """Ids or views as an int64 array, or an error that says what was given."""
    if not isinstance(values, Tensor) or values.dim() != 1 or values.is_floating_point() or values.is_complex():
        given = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(what, given, "an integer tensor [B]")
    return as_keys(values.long())


def specs_of(
    signals: Signals,
    count: int,
    mask: Tensor | None,
    ragged: Collection[str],
    codec_name: Callable[[str, torch.dtype], str],
) -> dict[str, SignalSpec]:
    """How each signal of a batch of ``count`` samples is to be stored; refuses shapes that do not fit."""
    if not signals:
        raise UserError("signals", "none", "at least one named tensor")
    if ragged and mask is None:
        raise UserError("mask", "none", f"a mask [B, L] for the ragged signals {', '.join(sorted(ragged))}")
    specs = {}
    for name, value in sorted(signals.items()):
        if not isinstance(value, (Tensor, SparseLogits)):
            raise UserError(f"signal {name}", type(value).__name__, "a tensor or SparseLogits")
        whole = shape_of(value)
        lead = (count, *mask.shape[1:]) if name in ragged and mask is not None else (count,)
        if whole[: len(lead)] != lead:
            raise UserError(f"signal {name}", list(whole), f"a tensor that begins with {list(lead)}")
        dtype = value.values.dtype if isinstance(value, SparseLogits) else value.dtype
        stored = codec(codec_name(name, dtype)).name
        specs[name] = SignalSpec(stored, whole[len(lead) :], dtype_name(dtype), name in ragged)
    return specs


def bad_elements(name: str, value: Tensor | SparseLogits, stored: Codec) -> tuple[Tensor, str]:
    """Elements that must not be stored, and a word for them."""
    words = "NaN or infinite"
    if isinstance(value, SparseLogits):
        bad = value.values.isnan() | value.values.isposinf()
        return bad | (value.rest.isnan() | value.rest.isposinf()).unsqueeze(-1), words
    if not value.is_floating_point():
        return torch.zeros(len(value), 1, dtype=torch.bool), words
    # -inf is how masked classes and padded vocabularies are written.
    bad = value.isnan() | value.isposinf() if name == "logits" else ~value.isfinite()
    if bad.any():
        return bad, words
    return ~stored.in_range(value), f"out of the range of {stored.name}"


def encode(value: Tensor | SparseLogits, mask: Tensor | None, spec: SignalSpec) -> dict[str, Tensor]:
    if mask is not None:
        value = rows_of(value, mask)
    return {name: part.contiguous() for name, part in spec.open().encode(value).items()}


def rows_of(value: Tensor | SparseLogits, rows: Tensor) -> Tensor | SparseLogits:
    def pick(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu()[rows]

    return value.map(pick) if isinstance(value, SparseLogits) else pick(value)


def shape_of(value: Tensor | SparseLogits) -> tuple[int, ...]:
    return (*value.values.shape[:-1], value.size) if isinstance(value, SparseLogits) else tuple(value.shape)


def words_of(specs: Mapping[str, SignalSpec]) -> str:
    return ", ".join(f"{name} {list(s.shape)} {s.dtype} as {s.codec}" for name, s in sorted(specs.items()))
