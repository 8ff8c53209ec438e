"""Samples on their way into a shard, and the memory of which samples a cache has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy
import numpy.typing
import torch
from torch import Tensor

from limbeck.cache.index import Index, Int64


@dataclass(frozen=True)
class Rows:
    """Encoded samples on their way into a shard.

    Attributes:
        ids, views: of the samples.
        parts: by ``signal/part``.
        ends: where the positions of every sample end (and the first begins), if there are ragged signals.
        ragged: those signals.
        streams: parts that are bytes without a row axis, and where the bytes of every sample end.
    """

    ids: Tensor
    views: Tensor
    parts: dict[str, Tensor]
    ends: Tensor | None
    ragged: frozenset[str]
    streams: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        ids: Int64,
        views: Int64,
        parts: dict[str, Tensor],
        lengths: Tensor | None,
        ragged: Collection[str],
        streams: Mapping[str, str],
    ) -> Rows:
        """``streams`` names the part that counts a stream's bytes; see :class:`~limbeck.cache.codecs.Codec`."""
        ends = None if lengths is None else _ends(lengths)
        byte_ends = {}
        for name, counting in streams.items():
            counts = parts[counting]
            whole = _ends(counts.reshape(len(counts), -1).sum(1, dtype=torch.int64))
            byte_ends[name] = whole[ends] if ends is not None and name.rpartition("/")[0] in ragged else whole
        return cls(torch.from_numpy(ids), torch.from_numpy(views), parts, ends, frozenset(ragged), byte_ends)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def split(self, at: int) -> tuple[Rows, Rows]:
        """The first ``at`` samples and the others."""
        return self._between(0, at), self._between(at, len(self))

    def _between(self, start: int, stop: int) -> Rows:
        parts, ends = {}, None
        if self.ends is not None:
            ends = self.ends[start : stop + 1] - self.ends[start]
        byte_ends = {name: end[start : stop + 1] - end[start] for name, end in self.streams.items()}
        for name, part in self.parts.items():
            if name in self.streams:
                parts[name] = part[int(self.streams[name][start]) : int(self.streams[name][stop])]
            elif self.ends is not None and name.rpartition("/")[0] in self.ragged:
                parts[name] = part[int(self.ends[start]) : int(self.ends[stop])]
            else:
                parts[name] = part[start:stop]
        return Rows(self.ids[start:stop], self.views[start:stop], parts, ends, self.ragged, byte_ends)

    @staticmethod
    def tensors(pieces: Sequence[Rows], views: bool) -> dict[str, Tensor]:
        """The tensors of one shard."""
        tensors = {"id": torch.cat([rows.ids for rows in pieces])}
        if views:
            tensors["view"] = torch.cat([rows.views for rows in pieces])
        lengths = [rows.ends.diff() for rows in pieces if rows.ends is not None]
        if lengths:
            tensors["end"] = _ends(torch.cat(lengths))
        for name in pieces[0].parts:
            tensors[f"signal/{name}"] = torch.cat([rows.parts[name] for rows in pieces])
            if name in pieces[0].streams:
                tensors[f"signal/{name}/end"] = _ends(torch.cat([rows.streams[name].diff() for rows in pieces]))
        return tensors


class Done:
    """The samples of a cache that is being written: an index, and a set of what came since it was built."""

    def __init__(self, keys: Sequence[tuple[Int64, Int64]]) -> None:
        empty = numpy.zeros(0, dtype=numpy.int64)
        self._ids = numpy.concatenate([empty, *(ids for ids, _ in keys)])
        self._views = numpy.concatenate([empty, *(views for _, views in keys)])
        self._index = Index(self._ids, self._views)
        self._recent: set[tuple[int, int]] = set()

    def __call__(self, ids: Int64, views: Int64) -> numpy.typing.NDArray[numpy.bool_]:
        known = self._index.rows(ids, views) >= 0
        if self._recent:
            pairs = zip(ids.tolist(), views.tolist(), strict=True)
            known |= numpy.fromiter((pair in self._recent for pair in pairs), dtype=bool, count=len(ids))
        return known

    def add(self, ids: Int64, views: Int64) -> None:
        self._recent.update(zip(ids.tolist(), views.tolist(), strict=True))
        # Rebuilding when the set has grown to the index's size keeps both the memory and the number of sorts
        # low.
        if len(self._recent) > max(65536, len(self._ids)):
            self._merge()

    def ids(self) -> Int64:
        self._merge()
        return numpy.unique(self._ids)

    def _merge(self) -> None:
        if not self._recent:
            return
        recent = numpy.array(sorted(self._recent), dtype=numpy.int64)
        self._ids = numpy.concatenate([self._ids, recent[:, 0]])
        self._views = numpy.concatenate([self._views, recent[:, 1]])
        self._index = Index(self._ids, self._views)
        self._recent = set()


def _ends(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
