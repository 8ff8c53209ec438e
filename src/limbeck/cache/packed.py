"""The most probable classes of a distribution in about twelve bits each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.cache.contract import Codec, Parts, most_probable
from limbeck.cache.packing import (
    Groups,
    Tables,
    bytes_of,
    fields_of,
    grades,
    ones_of,
    ones_of_fields,
    ranges_of,
    tables,
)
from limbeck.errors import UserError
from limbeck.signals import SparseLogits

BITS = 5
MOST = 4096
#: Classes less probable than exp(-32) are left to the rest, whatever the selection says.
FLOOR = -32.0


class Packed(Codec):
    """The most probable classes, bit-packed: sets of classes as ranges, square roots of probabilities in few bits.

    What a rounding costs in KL is the square of the error of the *square root* of the probability (half the Hellinger
    distance), so that is what has even steps, of ``2**-bits``, counted up from the row's least probable kept classes,
    which share one value. Small numbers of steps, which nearly all classes have, take a bit (Elias' gamma code). The
    set of classes is written as in :mod:`limbeck.cache.packing`. Which classes are kept:

    - ``packed:K``: the K most probable;
    - ``mass:P:K``: the fewest that hold the probability P together, at most K;
    - ``above:P:K``: all that have a probability of P or more, at least one and at most K. For a given number of bytes
      this comes closest to the teacher, for what a class costs in KL when it is left out is about in proportion to its
      probability, and a sure teacher's bytes are kept for an unsure one.

    Decoded rows have K classes always, so that a sample is the same in every batch: where fewer were kept, arbitrary
    others get their even share of the rest. Values and rest are a proper distribution; the rest's logarithm is
    float16, and the most probable class stays the most probable.

    Args:
        most: K. select: ``packed``, ``mass`` or ``above``. threshold: P. bits: of a square root, 1 to 16.
    """

    streams: ClassVar[Mapping[str, str]] = {"bits": "length"}

    def __init__(self, most: int, select: str = "packed", threshold: float = 0.0, bits: int = BITS) -> None:
        self.most, self.select, self.threshold, self.bits = most, select, threshold, bits
        self.step = 2.0**-bits
        self.name = f"{select}:{most}" if select == "packed" else f"{select}:{threshold:g}:{most}"
        self.name += "" if bits == BITS else f":{bits}"
        self.error = (
            f"of square roots of kept probabilities, each 1.5 * 2**-{bits} before and their distance 2 * 2**-{bits} "
            "* sqrt(kept + 2) after the row is normalised; the rest is spread evenly"
        )

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        sparse = self._chosen(value)
        lead = sparse.rest.shape
        values, classes = sparse.values.reshape(-1, sparse.values.shape[-1]), sparse.indices.flatten(0, -2)
        count = (values > -torch.inf).sum(-1)
        anchor, level = self._levels(values)
        order = torch.where(values > -torch.inf, classes, sparse.size).argsort(-1)
        here = torch.arange(values.shape[-1], device=values.device) < count.unsqueeze(-1)
        bits, length = _write(
            classes.gather(-1, order)[here], level.gather(-1, order)[here], count, self._tables(sparse)
        )
        most = min(self.most, sparse.size)
        # A rest of exactly 0 in the logarithm would leave nothing to the kept classes.
        rest = torch.where(sparse.rest.isneginf(), sparse.rest, sparse.rest.clamp(-65504.0, -(2.0**-24)))
        return {
            "anchor": anchor.reshape(lead).half(),
            "rest": rest.half(),
            "count": count.reshape(lead).to(torch.uint8 if most < 256 else torch.int16),
            "length": length.reshape(lead).to(torch.int16 if most < 2048 else torch.int32),
            "bits": bits,
        }

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> SparseLogits:
        size, lead = int(shape[-1]), parts["rest"].shape
        most = min(self.most, size)
        count, rest = parts["count"].flatten().long(), parts["rest"].flatten().float()
        groups = Groups(count)
        stored = tables(size, most, rest.device)
        found, level = _read(parts["bits"], parts["length"].flatten().long(), groups, stored, grades(most)[1])
        roots = (parts["anchor"].flatten().float() / 2).exp()[groups.row] + level * self.step
        values = rest.new_full((len(rest), most), -torch.inf)
        values[groups.row, groups.rank] = 2 * roots.log()
        # The kept classes share what the rest leaves.
        kept = torch.log(-torch.expm1(rest))
        values += (kept - values.logsumexp(-1)).unsqueeze(-1)
        classes = torch.zeros(len(rest), most, dtype=torch.int64, device=rest.device)
        classes[groups.row, groups.rank] = found
        values, classes, rest = _filled(values, classes, rest, count, size)
        values, order = values.sort(dim=-1, descending=True, stable=True)
        classes = classes.gather(-1, order)
        return SparseLogits(values.reshape(*lead, most), classes.reshape(*lead, most), rest.reshape(lead), size)

    def bound(self, value: Tensor) -> Tensor:
        """Of the square roots of the kept probabilities, in falling order: ``[..., 1]``, the same for all."""
        kept = torch.tensor(min(self.most, value.shape[-1]) + 2.0, dtype=torch.float64)
        # Anchor and rest are float16.
        bound = (1.5 + kept.sqrt()) * (self.step + 2**-8)
        return bound.expand(*value.shape[:-1], 1)

    def _chosen(self, value: Tensor | SparseLogits) -> SparseLogits:
        """The kept classes, -inf where a row has fewer than the most, and the exact rest."""
        size = value.size if isinstance(value, SparseLogits) else value.shape[-1]
        sparse = most_probable(value, min(self.most, size), self.name)
        if sparse.values.isnan().any():
            raise UserError("logits", "NaN, or a row that rules out every class", "a distribution in every row")
        probabilities = sparse.values.exp()
        keep = sparse.values >= FLOOR
        if self.select == "above":
            keep &= probabilities >= self.threshold
        elif self.select == "mass":
            keep &= probabilities.cumsum(-1) - probabilities < self.threshold
        keep[..., 0] = True
        dropped = torch.where(keep, -torch.inf, sparse.values).logsumexp(-1)
        values = torch.where(keep, sparse.values, -torch.inf)
        return SparseLogits(values, sparse.indices, torch.logaddexp(sparse.rest, dropped), size)

    def _levels(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability that the least probable kept classes share ``[M]``, and steps above it ``[M, K]``."""
        kept, roots = values > -torch.inf, (values / 2).exp()
        least = torch.where(kept, roots, 2.0).amin(-1, keepdim=True)
        group = kept & (roots <= least + self.step)
        mean = torch.where(group, roots.square(), 0.0).sum(-1) / group.sum(-1)
        anchor = mean.log().half().float()
        base = (anchor / 2).exp().unsqueeze(-1)
        level = ((roots - base) / self.step).round().clamp_min(0).long()
        # Rounding may not make another class the first.
        first = values == values[:, :1]
        others = torch.where(first, -1, level).amax(-1, keepdim=True)
        level = torch.where(first, level.maximum(others + 1), level)
        return anchor, level

    def _tables(self, sparse: SparseLogits) -> tuple[Tables, Tensor]:
        most = min(self.most, sparse.size)
        return tables(sparse.size, most, sparse.values.device), grades(most)[1].to(sparse.values.device)


def _write(classes: Tensor, level: Tensor, count: Tensor, stored: tuple[Tables, Tensor]) -> tuple[Tensor, Tensor]:
    """Bytes of all rows, and how many each has.

    A row is: which kind of partition (1 bit); ones and zeros of the ranges; places in the ranges; the lengths of the
    levels in unary; the levels. It begins with a new byte.
    """
    part, grade = stored
    groups = Groups(count)
    options = []
    for kind in (0, 1):
        table = (2 * grade[count] + kind)[groups.row]
        where = ranges_of(classes, table, part)
        width = part.widths[table, where]
        options.append((where, width, classes - part.starts[table, where], groups.total(width)))
    costs = [part.counts[2 * grade[count] + kind] + options[kind][3] for kind in (0, 1)]
    falling = costs[1] < costs[0]
    chosen = falling[groups.row]
    where, width, place = (torch.where(chosen, options[1][i], options[0][i]) for i in range(3))
    ranges = part.counts[2 * grade[count] + falling.long()]
    low = count + ranges
    unary = low + groups.total(width)
    # A level is level + 1 without its leading one, after as many zeros as are left and a one.
    size = torch.frexp((level + 1).double()).exponent.long() - 1
    binary = unary + groups.total(size + 1)
    length = (binary + groups.total(size) + 7) // 8
    start = (length.cumsum(0) - length) * 8
    begin = start[groups.row]
    ones = torch.cat([
        start[falling],
        begin + 1 + groups.rank + where,
        ones_of_fields(begin + low[groups.row] + groups.before(width), width, place),
        begin + unary[groups.row] + groups.before(size + 1) + size,
        ones_of_fields(begin + binary[groups.row] + groups.before(size), size, level + 1 - (1 << size)),
    ])  # fmt: skip
    return bytes_of(ones, int(length.sum())), length


def _read(stream: Tensor, length: Tensor, groups: Groups, part: Tables, grade: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and levels of all entries; see :func:`_write`."""
    start = (length.cumsum(0) - length) * 8
    falling = stream[start >> 3].long() >> 7
    table = 2 * grade.to(stream.device)[groups.counts] + falling
    ones = ones_of(stream)
    first = torch.searchsorted(ones, start + 1)
    where = ones[first[groups.row] + groups.rank] - (start + 1)[groups.row] - groups.rank
    mine = table[groups.row]
    width = part.widths[mine, where]
    low = start + groups.counts + part.counts[table]
    classes = part.starts[mine, where] + fields_of(stream, low[groups.row] + groups.before(width), width)
    unary = low + groups.total(width)
    first = torch.searchsorted(ones, unary)
    # The one of every length stands `size` places after the one before it.
    ends = ones[first[groups.row] + groups.rank] - unary[groups.row]
    size = torch.where(groups.rank > 0, ends - ends.roll(1) - 1, ends)
    binary = unary + groups.total(size + 1)
    level = fields_of(stream, binary[groups.row] + groups.before(size), size) + (1 << size) - 1
    return classes, level


def _filled(values: Tensor, classes: Tensor, rest: Tensor, count: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows filled up with the smallest classes that they do not hold, at their even share of the rest."""
    most = values.shape[1]
    rank = torch.arange(most, device=values.device)
    # The j-th class that is not held is j plus the held ones below it; held class i has (class - i) others below.
    number = rank - count.unsqueeze(-1)
    empty = number >= 0
    below = torch.searchsorted(torch.where(empty, size, classes - rank), number, right=True)
    others = torch.log((size - count).float().clamp_min(1))
    classes = torch.where(empty, number + below, classes)
    values = torch.where(empty, (rest - others).unsqueeze(-1), values)
    return values, classes, rest + torch.log(torch.tensor(float(size - most))) - others
