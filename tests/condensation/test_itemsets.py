"""FP-growth against counting every subset."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from limbeck.condensation.itemsets import TooManyItemsets, frequent_itemsets
from limbeck.errors import UserError


def by_counting(transactions: list[list[int]], threshold: int) -> dict[tuple[int, ...], int]:
    items = sorted({item for one in transactions for item in one})
    found = {}
    for size in range(1, len(items) + 1):
        for chosen in itertools.combinations(items, size):
            support = sum(set(chosen) <= set(one) for one in transactions)
            if support >= threshold:
                found[chosen] = support
    return found


def draw(seed: int) -> tuple[list[list[int]], int]:
    generator = random.Random(seed)
    items, density = generator.randint(1, 8), generator.choice([0.2, 0.5, 0.9])
    rows = [[i for i in range(items) if generator.random() < density] for _ in range(generator.randint(1, 12))]
    return rows, generator.randint(1, 4)


@pytest.mark.parametrize("seed", range(40))
def test_it_finds_what_counting_finds(seed: int) -> None:
    transactions, threshold = draw(seed)
    assert frequent_itemsets(transactions, threshold) == by_counting(transactions, threshold)


@pytest.mark.parametrize("seed", range(40))
def test_closed_sets_are_those_without_a_larger_one_of_the_same_support(seed: int) -> None:
    transactions, threshold = draw(seed)
    everything = by_counting(transactions, threshold)
    closed = {
        one: support
        for one, support in everything.items()
        if not any(set(one) < set(other) and support == times for other, times in everything.items())
    }
    found = frequent_itemsets(transactions, threshold, closed=True)
    assert found == closed
    # Nothing is lost: the support of a set is the largest of a closed set around it.
    for one, support in everything.items():
        assert support == max(times for other, times in found.items() if set(one) <= set(other))


def test_the_order_is_by_support_then_length() -> None:
    found = list(frequent_itemsets([[1, 2, 3], [1, 2], [1], [4]], 1).items())
    assert found[:3] == [((1,), 3), ((1, 2), 2), ((2,), 2)]
    assert found[3] == ((1, 2, 3), 1)


def test_repeated_items_count_once() -> None:
    assert frequent_itemsets([[7, 7], [7]], 2) == {(7,): 2}


def test_a_low_threshold_is_given_up_early() -> None:
    start = time.perf_counter()
    with pytest.raises(TooManyItemsets, match="threshold: given 2; more than 100 itemsets"):
        frequent_itemsets([range(60)] * 3, 2, limit=100)
    assert time.perf_counter() - start < 2
    assert frequent_itemsets([range(60)] * 3, 2, closed=True, limit=100) == {tuple(range(60)): 3}


def test_a_threshold_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="threshold: given 0; allowed: 1 or more"):
        frequent_itemsets([[1]], 0)
