"""From (sample id, view seed) to the row that holds it, for whole batches at once."""

from __future__ import annotations

import numpy
import numpy.typing
from torch import Tensor

Int64 = numpy.typing.NDArray[numpy.int64]


class Index:
    """Rows by id and view, for any int64 values.

    Ids without large gaps are found through a table, others by binary search; so are pairs of id and view.

    Args:
        ids: ``[N]``.
        views: ``[N]``; of equal pairs the first row counts.
    """

    def __init__(self, ids: Int64, views: Int64) -> None:
        self._ids, self._views = _Places(ids), _Places(views)
        keys = self._ids(ids) * len(self._views) + self._views(views)
        distinct, first = numpy.unique(keys, return_index=True)
        self._row: Int64 = numpy.append(first, -1).astype(numpy.int64)
        self._keys = _Places(distinct, distinct=True)

    def rows(self, ids: Int64, views: Int64) -> Int64:
        """Row of every pair, -1 where there is none."""
        if len(self._ids) == 0:
            return numpy.full(len(ids), -1, dtype=numpy.int64)
        place = self._ids(ids)
        if len(self._views) == 1 and self._views.first == 0 and not views.any():
            return self._at(place)
        view = self._views(views)
        known = (place >= 0) & (view >= 0)
        keys = numpy.where(known, place * len(self._views) + view, -1)
        return self._at(self._keys(keys))

    def __len__(self) -> int:
        return len(self._keys)

    def _at(self, place: Int64) -> Int64:
        rows: Int64 = self._row[place]
        return rows


class _Places:
    """Position of a value in the sorted distinct values, -1 if it is not there."""

    def __init__(self, values: Int64, *, distinct: bool = False) -> None:
        self._values = values if distinct else numpy.unique(values)
        self.first = int(self._values[0]) if len(self._values) else 0
        # Python's integers: the span of int64 values does not fit into int64.
        span = int(self._values[-1]) - self.first + 1 if len(self._values) else 0
        self._table: Int64 | None = None
        self._plain = span == len(self._values)
        if not self._plain and span <= 8 * len(self._values) + 1024:
            self._table = numpy.full(span, -1, dtype=numpy.int64)
            self._table[self._values - self.first] = numpy.arange(len(self._values))
        self._span = span

    def __len__(self) -> int:
        return len(self._values)

    def __call__(self, wanted: Int64) -> Int64:
        if self._plain or self._table is not None:
            # Unsigned, so that a value before the first wraps round and is out of the span too.
            offset = (wanted.view(numpy.uint64) - numpy.uint64(self.first % 2**64)).view(numpy.int64)
            inside = (offset >= 0) & (offset < self._span)
            if self._table is not None:
                offset = self._table[numpy.where(inside, offset, 0)]
            return numpy.where(inside, offset, -1)
        place = numpy.searchsorted(self._values, wanted)
        place = numpy.minimum(place, len(self._values) - 1)
        return numpy.where(self._values[place] == wanted, place, -1)


def as_keys(values: Tensor) -> Int64:
    """An int64 array of a tensor on any device."""
    array: Int64 = values.detach().cpu().contiguous().numpy()
    return array
