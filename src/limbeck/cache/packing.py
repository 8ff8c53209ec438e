"""Numbers of few bits in a stream of bytes: ones whose places count, fields of any width, and sets of classes.

A set of ``k`` classes out of many is written as Elias and Fano write rising numbers (P. Elias, Efficient storage and
retrieval by content and address of static files, JACM 1974): the classes are parted into about ``1.4 k`` ranges of
``2^w`` classes; a one for every member and a zero after every range say which ranges the members are in, and ``w``
bits each say where. That is within a bit per member of the least that is possible for classes that are all alike.
Vocabularies of merged byte pairs are not: frequent tokens have small numbers. So a set is parted either evenly or more
finely at small numbers, whichever is shorter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

EVEN, FALLING = 0, 1


class Partition(NamedTuple):
    """Ranges of classes: first class of each and its width in bits."""

    starts: Tensor
    widths: Tensor


@lru_cache(maxsize=1024)
def partition(size: int, members: int, kind: int) -> Partition:
    """The ranges of ``size`` classes for sets of about ``members``; whole numbers alone, so the same everywhere."""
    starts, widths, start = [], [], 0
    while start < size:
        # 0.7 size / members classes, or in proportion to start + size / 128, rounded to a power of two:
        # 181 / 128 is the root of two.
        share = 7 * 181 * size, 1280 * members
        if kind == FALLING:
            share = 17 * 181 * (128 * start + size), 640 * 128 * members
        width = max((share[0] // share[1]).bit_length() - 1, 0)
        starts.append(start)
        widths.append(width)
        start += 1 << width
    return Partition(torch.tensor(starts), torch.tensor(widths))


@lru_cache(maxsize=64)
def grades(most: int) -> tuple[tuple[int, ...], Tensor]:
    """Numbers of members that have partitions of their own, and which of them serves each number up to ``most``."""
    own: list[int] = []
    while not own or own[-1] < most:
        own.append(own[-1] + max(own[-1] // 6, 1) if own else 1)
    return tuple(own), torch.bucketize(torch.arange(most + 1), torch.tensor(own))


class Tables(NamedTuple):
    """All partitions of a codec side by side: ``[2 * grades, ranges]``, and the number of ranges of each."""

    starts: Tensor
    widths: Tensor
    counts: Tensor


@lru_cache(maxsize=64)
def tables(size: int, most: int, device: torch.device) -> Tables:
    """Row ``2 * grade + kind`` is that partition; rows are filled up with ``size`` and 0."""
    parts = [partition(size, members, kind) for members in grades(most)[0] for kind in (EVEN, FALLING)]
    longest = max(len(part.starts) for part in parts)
    starts = torch.full((len(parts), longest), size)
    widths = torch.zeros(len(parts), longest, dtype=torch.int64)
    for row, part in enumerate(parts):
        starts[row, : len(part.starts)], widths[row, : len(part.widths)] = part.starts, part.widths
    counts = torch.tensor([len(part.starts) for part in parts])
    return Tables(starts.to(device), widths.to(device), counts.to(device))


def ranges_of(classes: Tensor, table: Tensor, stored: Tables) -> Tensor:
    """Range of every class ``[E]`` in the partition ``table`` ``[E]``."""
    found = torch.zeros_like(classes)
    for one in table.unique().tolist():
        mine = table == one
        found[mine] = torch.bucketize(classes[mine], stored.starts[one], right=True) - 1
    return found


class Groups:
    """Entries that stand one row after another, ``counts`` ``[N]`` of them in each."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.first = counts.cumsum(0) - counts
        self.row = torch.repeat_interleave(counts)
        self.rank = torch.arange(len(self.row), device=counts.device) - self.first[self.row]

    def before(self, values: Tensor) -> Tensor:
        """Sum of ``values`` ``[E]`` over the entries of the same row that come before."""
        through = values.cumsum(0) - values
        return through - torch.cat([through, through.new_zeros(1)])[self.first][self.row]

    def total(self, values: Tensor) -> Tensor:
        """Sum of ``values`` ``[E]`` by row, ``[N]``."""
        return values.new_zeros(len(self.counts)).index_add_(0, self.row, values)


def bytes_of(ones: Tensor, length: int) -> Tensor:
    """``length`` bytes, zero but for the bits at ``ones``; bit 0 is the highest of the first byte."""
    bits = torch.zeros(length * 8, dtype=torch.uint8, device=ones.device)
    bits[ones] = 1
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=ones.device)
    return (bits.reshape(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def ones_of(stream: Tensor) -> Tensor:
    """Places of the bits of ``stream`` (uint8) that are set, rising."""
    if stream.device.type == "cpu":
        import numpy

        return torch.from_numpy(numpy.flatnonzero(numpy.unpackbits(stream.numpy())))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=stream.device)
    return ((stream.unsqueeze(1) >> shifts) & 1).flatten().nonzero().squeeze(1)


def ones_of_fields(place: Tensor, width: Tensor, value: Tensor) -> Tensor:
    """Places of the ones of binary numbers, each ``width`` bits from ``place`` on."""
    found = []
    for bit in range(int(width.max()) if len(width) else 0):
        set_here = (width > bit) & ((value >> bit) & 1).bool()
        found.append((place + width - 1 - bit)[set_here])
    return torch.cat([place[:0], *found])


def fields_of(stream: Tensor, place: Tensor, width: Tensor) -> Tensor:
    """The binary numbers that :func:`ones_of_fields` wrote, of up to 25 bits."""
    padded = torch.cat([stream, stream.new_zeros(4)])
    first = place >> 3
    window = torch.zeros_like(place)
    for byte in range(4):
        window = (window << 8) | padded[first + byte]
    return (window >> (32 - width - (place & 7))) & ((1 << width) - 1)
