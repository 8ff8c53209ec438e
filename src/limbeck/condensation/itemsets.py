"""Frequent itemsets by FP-growth (Han, Pei and Yin, SIGMOD 2000).

A set of items is frequent when at least ``threshold`` transactions hold all of it. Transactions are merged into a
prefix tree, the frequent items first, so that what many share is stored once. The sets that end with an item are those
of its conditional tree: the paths above it, counted as often as they lead to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from limbeck.errors import LimbeckError, UserError

Itemset = tuple[int, ...]


class TooManyItemsets(LimbeckError):
    """The threshold is so low that more sets are frequent than the limit allows."""

    def __init__(self, threshold: int, limit: int) -> None:
        self.threshold, self.limit = threshold, limit
        super().__init__(
            f"threshold: given {threshold}; more than {limit} itemsets are that frequent; "
            "raise the threshold or the limit"
        )


class _Node:
    __slots__ = ("children", "count", "item", "parent")

    def __init__(self, item: int, parent: _Node | None) -> None:
        self.item, self.parent, self.count = item, parent, 0
        self.children: dict[int, _Node] = {}


class _Tree(NamedTuple):
    support: dict[int, int]
    places: dict[int, list[_Node]]


def frequent_itemsets(
    transactions: Iterable[Iterable[int]], threshold: int, *, closed: bool = False, limit: int | None = None
) -> dict[Itemset, int]:
    """Every itemset that at least ``threshold`` transactions hold, with its support.

    Args:
        transactions: each a collection of items; repeated items count once.
        threshold: smallest support, as a number of transactions, at least 1.
        closed: leave out a set where a larger one has the same support (Pei, Han and Mao, DMKD 2000): nothing is lost,
            as the others are the subsets of these, and transactions that are alike no longer make exponentially many.
        limit: most itemsets. Their number is exponential in the size of the largest one.

    Returns:
        sorted items -> support; by falling support, then by falling length, then by items.

    Raises:
        TooManyItemsets: there are more than ``limit``.
    """
    if threshold < 1:
        raise UserError("threshold", threshold, "1 or more")
    found: dict[Itemset, int] = {}
    alike: dict[int, list[frozenset[int]]] = {}
    tree = _build(((sorted(set(items)), 1) for items in transactions), threshold)
    for items, support in _grow(tree, (), threshold, closed):
        if closed:
            # A larger set of the same support holds a rarer item, whose branch has been searched before this one.
            members = frozenset(items)
            if any(members <= larger for larger in alike.setdefault(support, [])):
                continue
            alike[support].append(members)
        found[tuple(sorted(items))] = support
        if limit is not None and len(found) > limit:
            raise TooManyItemsets(threshold, limit)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], -len(pair[0]), pair[0])))


def _build(paths: Iterable[tuple[Sequence[int], int]], threshold: int) -> _Tree:
    kept = list(paths)
    counts: Counter[int] = Counter()
    for items, times in kept:
        counts.update(dict.fromkeys(items, times))
    support = {item: count for item, count in counts.items() if count >= threshold}
    root, places = _Node(-1, None), {item: list[_Node]() for item in support}
    for items, times in kept:
        node = root
        for item in sorted((one for one in items if one in support), key=lambda one: (-support[one], one)):
            if item not in node.children:
                node.children[item] = _Node(item, node)
                places[item].append(node.children[item])
            node = node.children[item]
            node.count += times
    return _Tree(support, places)


def _grow(tree: _Tree, suffix: Itemset, threshold: int, closed: bool) -> Iterator[tuple[Itemset, int]]:
    for item, support in sorted(tree.support.items(), key=lambda pair: (pair[1], -pair[0])):
        above = _build([(path, node.count) for node in tree.places[item] if (path := _path(node))], threshold)
        longer = (*suffix, item)
        if closed and (certain := [one for one, times in above.support.items() if times == support]):
            # Items that come with every occurrence belong to the set; what is left may or may not.
            longer = (*longer, *certain)
            above = _without(above, certain, threshold)
        yield longer, support
        yield from _grow(above, longer, threshold, closed)


def _without(tree: _Tree, items: Sequence[int], threshold: int) -> _Tree:
    gone = set(items)
    paths: list[tuple[Sequence[int], int]] = []
    for node in (one for places in tree.places.values() for one in places):
        # A node ends as many paths as are not continued below it.
        ends = node.count - sum(child.count for child in node.children.values())
        if ends:
            paths.append(([one for one in (*_path(node), node.item) if one not in gone], ends))
    return _build(paths, threshold)


def _path(node: _Node) -> list[int]:
    items, current = [], node.parent
    while current is not None and current.parent is not None:
        items.append(current.item)
        current = current.parent
    return items
