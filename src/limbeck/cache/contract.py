"""What a codec is; see :mod:`limbeck.cache.codecs` for those there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals import SparseLogits

Parts = Mapping[str, Tensor]


class Codec(ABC):
    """One way to store a signal.

    Attributes:
        name: what the manifest calls it.
        error: the bound on a decoded element, in words; :meth:`bound` computes it.
        streams: parts that are bytes without a row axis, by the part that says how many of them each row has.
    """

    name: str
    error: str
    streams: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        """Parts of ``value`` ``[N, ...]``, each with ``N`` rows; a stream holds the bytes of all rows in a row."""

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


def dense_value(value: Tensor | SparseLogits, name: str) -> Tensor:
    """A dense signal, or an error that says which codecs sparse ones can have."""
    if isinstance(value, SparseLogits):
        raise UserError(
            "codec", name, f"topk:K with K up to {value.values.shape[-1]}", "this source gives top-k logits"
        )
    return value


def most_probable(value: Tensor | SparseLogits, k: int, name: str) -> SparseLogits:
    """The ``k`` most probable classes of logits, or of sparse logits that hold as many, with the exact rest."""
    if not isinstance(value, SparseLogits):
        return SparseLogits.from_dense(value, k)
    if value.values.shape[-1] < k:
        raise UserError("codec", name, f"K up to {value.values.shape[-1]}, which the source gives")
    return value.top(k)
