"""Thresholds of Mirage from a number of bytes: which sets of trees a distilled set of that size can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from limbeck.condensation.itemsets import Itemset
from limbeck.condensation.store import DistilledSet

Mined = dict[Itemset, int]
#: Thresholds of the classes, and their sets.
Found = tuple[dict[int, int], dict[int, Mined]]
# Class, weight (2), length and at least one tree id of a set.
_LEAST_BYTES = 5


class Miner(Protocol):
    """What is asked of :class:`~.method.Mirage`."""

    transactions_: dict[int, list[Counter[int]]]

    def mine(self, label: int, threshold: int, limit: int | None = None) -> Mined | None: ...
    def filtered(self, mined: dict[int, Mined]) -> dict[int, Mined]: ...
    def assemble(self, itemsets: Mapping[int, Mined]) -> DistilledSet: ...


def fill_budget(miner: Miner, budget: int) -> Found:
    """Thresholds and filtered sets of at most ``budget`` bytes.

    Every class gets an equal share of the bytes and the lowest threshold whose sets fit it. The class filter then
    leaves room, so the share is raised, by doubling and then by bisection, as long as what is left fits the whole. (It
    may have to fall, too: more than 256 trees in all need wider numbers than those of each class did.)
    """
    shares, low = Shares(miner), budget // len(miner.transactions_)

    def fits(tried: Found) -> bool:
        return not any(tried[1].values()) or miner.assemble(tried[1]).bytes <= budget

    best = shares.within(low)
    while low and not fits(best):
        low //= 2
        best = shares.within(low)
    high, highest = 2 * low, 64 * low
    while high <= highest and fits(tried := shares.within(high)):
        if tried == best and set(tried[0].values()) == {1}:
            return best  # every set there is
        low, best, high = high, tried, 2 * high
    while high - low > max(8, low // 50):
        share = (low + high) // 2
        if fits(tried := shares.within(share)):
            low, best = share, tried
        else:
            high = share
    return best


class Shares:
    """What every class can hold in a number of bytes of its own, before the filter."""

    def __init__(self, miner: Miner) -> None:
        self.miner = miner
        self._sizes: dict[tuple[int, int], int] = {}

    def within(self, share: int) -> Found:
        """Thresholds, and filtered sets, of classes that may each take ``share`` bytes."""
        thresholds = {label: self._threshold(label, share) for label in self.miner.transactions_}
        mined = {label: self._filled(label, thresholds[label], share) for label in thresholds}
        return thresholds, self.miner.filtered(mined)

    def _threshold(self, label: int, share: int) -> int:
        """The lowest threshold whose sets fit: the fewer graphs must have a set in common, the more sets there are."""
        low, high = 1, len(self.miner.transactions_[label]) + 1
        while low < high:
            middle = (low + high) // 2
            mined = self.miner.mine(label, middle, share // _LEAST_BYTES)
            if mined is not None and self._size(label, mined) <= share:
                high = middle
            else:
                low = middle + 1
        return low

    def _filled(self, label: int, threshold: int, share: int) -> Mined:
        """The sets of a threshold, and of those just below it as many as still fit, the longest first."""
        mined = self.miner.mine(label, threshold) or {}
        below = self.miner.mine(label, threshold - 1) if threshold > 1 else None
        if below is None:
            return mined
        ordered = list(below.items())
        low, high = len(mined), min(len(below), share // _LEAST_BYTES)
        while low < high:
            middle = (low + high + 1) // 2
            if self._size(label, dict(ordered[:middle])) <= share:
                low = middle
            else:
                high = middle - 1
        return dict(ordered[:low])

    def _size(self, label: int, mined: Mined) -> int:
        # Sets stand by falling support, so that a lower threshold only adds to the end: a number says which they are.
        key = (label, len(mined))
        if key not in self._sizes:
            self._sizes[key] = self.miner.assemble({label: mined}).bytes if mined else 0
        return self._sizes[key]
