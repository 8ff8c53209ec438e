"""Collecting the rows of a batch from several shards, and putting ragged ones into their padded places."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import numpy.typing
import torch
from torch import Tensor

from limbeck.cache.index import Int64

Array = numpy.typing.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """Rows of a batch by shard.

    Attributes:
        shards: that hold them, rising.
        cuts: rows ``cuts[i]`` to ``cuts[i + 1]`` of ``local`` are those of ``shards[i]``.
        local: row in its shard.
        order: place in the batch of every row of ``local``; None means as they stand.
        span: the rows as a slice, where they are neighbours in one shard.
    """

    shards: list[int]
    cuts: list[int]
    local: Int64
    order: Int64 | None = None
    span: slice | None = None

    def gather(self, stored: list[Array], like: Array) -> Array:
        """The rows, in the order of the batch; a copy, which callers may change."""
        if not stored:
            return like[:0].copy()
        if self.span is not None:
            return like[self.span].copy()
        if self.order is None:
            return like.take(self.local, 0)
        # One pass by shard and one into order is much faster than scattering every shard's few rows.
        ordered = numpy.empty((len(self.local), *like.shape[1:]), like.dtype)
        for array, (start, stop) in zip(stored, pairwise(self.cuts), strict=True):
            array.take(self.local[start:stop], 0, ordered[start:stop], "clip")
        joined = numpy.empty_like(ordered)
        joined[self.order] = ordered
        return joined

    def gather_bytes(self, stored: list[Array], ends: list[Int64], like: Array, *, ordered: bool) -> Array:
        """Bytes of the rows, which end at ``ends`` in each shard; ``ordered`` as in the batch, else as in the plan."""
        if self.span is not None:
            return like[ends[0][self.span.start] : ends[0][self.span.stop]].copy()
        pieces = []
        for array, end, (start, stop) in zip(stored, ends, pairwise(self.cuts), strict=True):
            rows = self.local[start:stop]
            pieces += [array[a:b] for a, b in zip(end[rows].tolist(), end[rows + 1].tolist(), strict=True)]
        if ordered and self.order is not None:
            back = numpy.empty_like(self.order)
            back[self.order] = numpy.arange(len(self.order))
            pieces = [pieces[place] for place in back.tolist()]
        return numpy.concatenate([like[:0], *pieces])


def plan_of(rows: Int64, starts: Int64) -> Plan:
    """Find the shards of ``rows``; shard ``i`` holds rows ``starts[i]`` to ``starts[i + 1]``."""
    count = len(rows)
    if not count:
        return Plan([], [0], rows)
    low, high = int(rows.min()), int(rows.max())
    shard = int(numpy.searchsorted(starts, low, side="right")) - 1
    start, stop = int(starts[shard]), int(starts[shard + 1])
    if high < stop:
        neighbours = high - low == count - 1 and bool((rows[1:] > rows[:-1]).all())
        span = slice(low - start, high - start + 1) if neighbours else None
        return Plan([shard], [0, count], rows - start, span=span)
    order = numpy.argsort(rows, kind="stable")
    ordered = rows[order]
    shards = numpy.searchsorted(starts, ordered, side="right") - 1
    cuts = [0, *(numpy.flatnonzero(numpy.diff(shards)) + 1).tolist(), count]
    return Plan(shards[cuts[:-1]].tolist(), cuts, ordered - starts[shards], order)


@dataclass(frozen=True)
class Layout:
    """How positions of ragged samples come to their padded places.

    Attributes:
        mask: bool ``[B, L]``, the places.
        lengths: stored positions of every sample ``[B]``.
        misfits: samples for which ``mask`` has not as many places as are stored, ``[B]``.
        sources: by shard of the plan, the stored positions.
        targets: places of the gathered positions in the flat mask.
    """

    mask: Array
    lengths: Int64
    misfits: Array
    sources: list[Int64]
    targets: Int64

    def gather(self, stored: list[Array], like: Array) -> Array:
        """The positions, sample after sample."""
        found = [array.take(source, 0) for array, source in zip(stored, self.sources, strict=True)]
        return numpy.concatenate([like[:0], *found])

    def place(self, flat: Tensor) -> Tensor:
        """Gathered positions as ``[B, L, ...]``, zero elsewhere."""
        padded = flat.new_zeros(self.mask.size, *flat.shape[1:])
        padded[torch.from_numpy(self.targets).to(flat.device)] = flat
        return padded.reshape(*self.mask.shape, *flat.shape[1:])


def layout_of(plan: Plan, ends: list[Int64], mask: Array | None) -> Layout:
    """Places of a plan's positions in ``mask`` ``[B, L]``, or from the left without one.

    ``ends`` holds, for every shard of the plan, where the positions of its samples begin and end.
    """
    count = len(plan.local)
    spans = list(zip(ends, pairwise(plan.cuts), strict=True))
    begins = [end[plan.local[a:b]] for end, (a, b) in spans]
    counts = [end[plan.local[a:b] + 1] - end[plan.local[a:b]] for end, (a, b) in spans]
    order = numpy.arange(count) if plan.order is None else plan.order
    lengths = numpy.zeros(count, dtype=numpy.int64)
    lengths[order] = numpy.concatenate([lengths[:0], *counts])
    if mask is None:
        mask = numpy.arange(lengths.max(initial=0)) < lengths[:, None]
    fitting = mask.ndim == 2 and len(mask) == count
    misfits = mask.sum(1) != lengths if fitting else numpy.ones(count, dtype=bool)
    sources = [_ranges(begin, many) for begin, many in zip(begins, counts, strict=True)]
    if misfits.any():
        return Layout(mask, lengths, misfits, sources, lengths[:0])
    slots = numpy.flatnonzero(mask)
    targets = slots[_ranges((lengths.cumsum() - lengths)[order], lengths[order])]
    return Layout(mask, lengths, misfits, sources, targets)


def _ranges(begin: Int64, length: Int64) -> Int64:
    """``begin[i], begin[i] + 1, ...``, ``length[i]`` numbers each, one after another."""
    first = length.cumsum() - length
    return numpy.repeat(begin - first, length) + numpy.arange(length.sum())
