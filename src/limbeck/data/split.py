"""Samples held in memory: a split of a data set, and the three splits of a testbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError

#: Tensors, mappings of tensors, or a sequence of anything that a loader's ``collate`` understands: texts, graphs.
Input = Tensor | Sequence[Any] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Samples with their targets and stable ids.

    Attributes:
        input: a tensor ``[N, ...]``, a mapping of such tensors, or ``N`` texts or graphs.
        target: ``[N]`` class numbers (or any tensor with ``N`` rows); ``None`` for unlabelled data.
        id: int64 ``[N]``: the sample's number in the whole data set, so that a sample keeps its id in every
            subset.
    """

    input: Input
    target: Tensor | None
    id: Tensor

    def __post_init__(self) -> None:
        for name, count in {"input": input_length(self.input), "target": _rows(self.target)}.items():
            if count is not None and count != len(self.id):
                raise UserError(f"split {name}", f"{count} rows", f"as many rows as id has, {len(self.id)}")

    def __len__(self) -> int:
        return len(self.id)

    @property
    def labels(self) -> Tensor:
        """The targets of a split that has them."""
        if self.target is None:
            raise UserError("split", "one without targets", "a labelled split")
        return self.target

    def subset(self, index: Tensor | Sequence[int]) -> Split:
        """The samples at the positions ``index``, in that order."""
        index = torch.as_tensor(index, dtype=torch.int64)
        target = None if self.target is None else self.target[index]
        return Split(take(self.input, index), target, self.id[index])

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Batches in the order of the split; the last one may be short. For training use ``TensorLoader``."""
        for index in torch.split(torch.arange(len(self)), batch_size):
            batch = {"input": take(self.input, index), "id": self.id[index]}
            yield batch if self.target is None else {**batch, "target": self.target[index]}


@dataclass(frozen=True)
class Splits:
    """Training, validation and test samples, disjoint by id. Select on ``validation``, never on ``test``."""

    train: Split
    validation: Split
    test: Split


def take(values: Input, index: Tensor) -> Any:
    """Rows ``index`` of a tensor, of every tensor of a mapping, or of a sequence."""
    if isinstance(values, Tensor):
        return values.index_select(0, index)
    if isinstance(values, Mapping):
        return {name: value.index_select(0, index) for name, value in values.items()}
    return [values[position] for position in index.tolist()]


def input_length(values: Input) -> int:
    """Number of samples of an input."""
    if isinstance(values, Mapping):
        counts = {name: len(value) for name, value in values.items()}
        if len(set(counts.values())) != 1:
            raise UserError("input", counts, "tensors with the same number of rows")
        return next(iter(counts.values()))
    return len(values)


def _rows(target: Tensor | None) -> int | None:
    return None if target is None else len(target)
