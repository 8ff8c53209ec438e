"""Thresholds of Mirage from a number of bytes: which sets of trees a distilled set of that size can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from limbeck.condensation.itemsets import Itemset
from limbeck.condensation.store import DistilledSet

Mined = dict[Itemset, int]
# Class, weight (2), length and at least one tree id of a set.
_LEAST_BYTES = 5


class Miner(Protocol):
    """What is asked of :class:`~.method.Mirage`."""

    transactions_: dict[int, list[Counter[int]]]

    def mine(self, label: int, threshold: int, limit: int | None = None) -> Mined | None: ...
    def filtered(self, mined: dict[int, Mined]) -> dict[int, Mined]: ...
    def assemble(self, itemsets: Mapping[int, Mined]) -> DistilledSet: ...


def fill_budget(miner: Miner, budget: int) -> tuple[dict[int, int], dict[int, Mined]]:
    """Thresholds and filtered sets of at most ``budget`` bytes.

    Every class gets an equal share of the bytes and the lowest threshold whose sets fit it. The class filter then
    leaves room, so the share is raised, by doubling and then by bisection, as long as what is left fits the whole.
    """
    low = budget // len(miner.transactions_)
    best, high, highest = _within_share(miner, low), 2 * low, 64 * low

    def fits(tried: tuple[dict[int, int], dict[int, Mined]]) -> bool:
        return not any(tried[1].values()) or miner.assemble(tried[1]).bytes <= budget

    while high <= highest and fits(tried := _within_share(miner, high)):
        if tried == best and set(tried[0].values()) == {1}:
            return best  # every set there is
        low, best, high = high, tried, 2 * high
    while high - low > max(8, low // 50):
        share = (low + high) // 2
        if fits(tried := _within_share(miner, share)):
            low, best = share, tried
        else:
            high = share
    return best


def _within_share(miner: Miner, share: int) -> tuple[dict[int, int], dict[int, Mined]]:
    """Thresholds, and filtered sets, of classes that may each take ``share`` bytes before the filter."""
    thresholds = {label: _threshold(miner, label, share) for label in miner.transactions_}
    mined = {label: _filled(miner, label, thresholds[label], share) for label in thresholds}
    return thresholds, miner.filtered(mined)


def _threshold(miner: Miner, label: int, share: int) -> int:
    """The lowest threshold whose sets fit: the fewer graphs must have a set in common, the more sets there are."""
    low, high = 1, len(miner.transactions_[label]) + 1
    while low < high:
        middle = (low + high) // 2
        mined = miner.mine(label, middle, share // _LEAST_BYTES)
        if mined is not None and _size(miner, label, mined) <= share:
            high = middle
        else:
            low = middle + 1
    return low


def _filled(miner: Miner, label: int, threshold: int, share: int) -> Mined:
    """The sets of a threshold, and of those just below it as many as still fit, the longest first."""
    mined = miner.mine(label, threshold) or {}
    below = miner.mine(label, threshold - 1) if threshold > 1 else None
    if below is None:
        return mined
    ordered = list(below.items())
    low, high = len(mined), min(len(below), share // _LEAST_BYTES)
    while low < high:
        middle = (low + high + 1) // 2
        if _size(miner, label, dict(ordered[:middle])) <= share:
            low = middle
        else:
            high = middle - 1
    return dict(ordered[:low])


def _size(miner: Miner, label: int, mined: Mined) -> int:
    return miner.assemble({label: mined}).bytes if mined else 0
