"""A distilled set: samples, targets and weights, what they weigh in bytes, and the file they live in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.condensation.packing import Forests, Tiles, narrow, pack, unpack
from limbeck.data.graphs import Graph
from limbeck.data.split import Split
from limbeck.data.tensor_file import TensorFile
from limbeck.errors import UserError

_FILE = TensorFile("distilled set", "limbeck-distilled-1", "DistilledSet.save")


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """Samples that stand for a data set. Make one with :meth:`of`.

    Attributes:
        kind: what the samples are: ``tensor``, ``tensors``, ``graphs``, ``graphs_undirected``, ``forests`` or
            ``tiles``.
        tensors: the samples as they are stored.
        target: classes ``[N]`` or soft labels ``[N, C]``, as stored; all tiles of an image may share one.
        weight: how often a sample should be drawn, relative to the others, ``[N]``; ``None``: all alike.
        about: texts that travel along: how it was made, from which data.

    ``bytes`` counts samples, targets and weights. The few hundred bytes of a file's header, which name the tensors, are
    not counted, so that sets of different kinds compare by what they hold.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    target: Tensor
    weight: Tensor | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        samples: Tensor | Mapping[str, Tensor] | Sequence[Graph] | Forests | Tiles,
        target: Tensor,
        weight: Tensor | None = None,
        about: Mapping[str, str] | None = None,
    ) -> DistilledSet:
        """Pack samples without loss.

        Args:
            samples: images or features as a tensor ``[N, ...]``, a mapping of such tensors, graphs, forests of
                computation trees, or tiled images of eight bits. Floating numbers keep their type: convert them first
                to store less.
            target: int64 ``[N]`` or floating ``[N, C]``; of tiled images also one per image.
            weight: non-negative, not all zero; as many as targets.
        """
        kind, tensors = pack(samples)
        count = len(next(iter(samples.values()))) if isinstance(samples, Mapping) else len(samples)
        if len(target) != count and not (isinstance(samples, Tiles) and len(target) == len(samples.pixels)):
            raise UserError("distilled target", f"{len(target)} rows", f"one per sample, {count}")
        if weight is not None and len(weight) != len(target):
            raise UserError("distilled weight", f"{len(weight)} rows", f"one per target, {len(target)}")
        if weight is not None and (bool((weight < 0).any()) or not bool((weight > 0).any())):
            raise UserError("distilled weight", "negative or all zero", "non-negative weights, one of them positive")
        return cls(kind, tensors, narrow(target), None if weight is None else narrow(weight), dict(about or {}))

    def __len__(self) -> int:
        """Number of samples."""
        if self.kind == "tiles":
            return len(self.tensors["pixels"]) * int(self.tensors["factor"]) ** 2
        return len(self.target)

    @property
    def bytes(self) -> int:
        """Size of everything that training needs."""
        stored = [*self.tensors.values(), self.target, *([] if self.weight is None else [self.weight])]
        return sum(values.numel() * values.element_size() for values in stored)

    @cached_property
    def samples(self) -> Any:
        """The samples unpacked: a tensor, a mapping of tensors or a list of graphs."""
        return unpack(self.kind, dict(self.tensors))

    def split(self) -> Split:
        """The samples as training data; ids are their positions."""
        target = self.target.float() if self.target.is_floating_point() else self.target.long()
        return Split(self.samples, self._per_sample(target), torch.arange(len(self)))

    @property
    def sample_weight(self) -> Tensor | None:
        """The weight of every sample, ``None``: all alike."""
        return None if self.weight is None else self._per_sample(self.weight)

    def _per_sample(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(len(self) // len(values), dim=0)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; the old one stays until the new one is whole."""
        content = {f"samples/{name}": values for name, values in self.tensors.items()} | {"target": self.target}
        if self.weight is not None:
            content["weight"] = self.weight
        about = json.dumps(dict(self.about), sort_keys=True)
        return _FILE.write(path, content, {"kind": self.kind, "about": about})

    @classmethod
    def load(cls, path: str | Path) -> DistilledSet:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: no file, or not a distilled set.
        """
        content, texts = _FILE.read(path)
        samples = {
            name.removeprefix("samples/"): value for name, value in content.items() if name.startswith("samples/")
        }
        return cls(texts["kind"], samples, content["target"], content.get("weight"), json.loads(texts["about"]))
