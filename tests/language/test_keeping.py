"""Which words stay at a rate."""

from __future__ import annotations

import random

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.language.keeping import Keeper, best_contexts, best_within, budget, shares, without_repeats

WORDS = ["a", "b", "c", "d", "e"]
SCORES = [0.1, 0.9, 0.5, 0.9, 0.2]


def kept(keep: list[bool]) -> str:
    return "".join(word for word, stays in zip(WORDS, keep) if stays)


@pytest.mark.parametrize(("rate", "expected"), [(0.2, "b"), (0.4, "bd"), (0.5, "bcd"), (0.6, "bcd"), (0.8, "bcde")])
def test_the_best_words_fill_the_budget(rate: float, expected: str) -> None:
    assert kept(Keeper(rate)(WORDS, SCORES)) == expected


def test_the_budget_is_met_exactly_whatever_the_ties() -> None:
    rng = random.Random(0)
    for _ in range(50):
        count = rng.randint(1, 40)
        scores = [rng.choice([0.0, 0.5, 1.0]) for _ in range(count)]
        rate = rng.random()
        assert sum(Keeper(rate)(["w"] * count, scores)) == budget(rate, [1] * count)
    assert kept(Keeper(0.4)(WORDS, [0.5] * 5)) == "ab", "earlier ones first"


def test_a_smaller_rate_keeps_a_part_of_a_larger_one() -> None:
    small, large = Keeper(0.2)(WORDS, SCORES), Keeper(0.6)(WORDS, SCORES)
    assert all(b for a, b in zip(small, large) if a)


def test_rates_at_and_beyond_the_ends() -> None:
    assert kept(Keeper(0.0)(WORDS, SCORES)) == kept(Keeper(-1.0)(WORDS, SCORES)) == ""
    assert kept(Keeper(1.0)(WORDS, SCORES)) == kept(Keeper(3.0)(WORDS, SCORES)) == "abcde"
    assert Keeper(0.5)([], []) == []
    for rule in ("exact", "percentile"):
        assert kept(Keeper(0.0, forced={"c"}, rule=rule)(WORDS, SCORES)) == "c"


def test_forced_words_and_digits_are_paid_first() -> None:
    assert kept(Keeper(0.4, forced={"a", "never seen"})(WORDS, SCORES)) == "ab"
    assert kept(Keeper(0.2, forced={"a", "e"})(WORDS, SCORES)) == "ae", "over the budget, and nothing else"
    assert Keeper(0.34, digits=True)(["x", "v2", "y"], [0.9, 0.1, 0.8]) == [False, True, False]


def test_costs_are_what_is_spent() -> None:
    assert kept(Keeper(0.5)(WORDS, SCORES, [1, 4, 1, 1, 1])) == "b"
    assert best_within([0.9, 0.8, 0.7], [3, 2, 1], 4) == [True, False, True], "one that no longer fits is passed over"
    assert kept(Keeper(0.0)(WORDS, SCORES, limit=2)) == "bd"


@pytest.mark.parametrize(("rate", "percentile"), [(0.5, 51), (0.8, 20), (0.33, 68), (0.2, 81)])
def test_the_released_rule(rate: float, percentile: int) -> None:
    """Its percentile is cut in floating point: 20 at rate 0.8, not 21."""
    rng = np.random.default_rng(percentile)
    scores, costs = rng.random(30).tolist(), rng.integers(1, 4, 30).tolist()
    edge = np.percentile(np.repeat(scores, costs), percentile)
    assert int(100 * (1 - rate) + 1) == percentile
    assert Keeper(rate, rule="percentile")(["w"] * 30, scores, costs) == [score > edge for score in scores]


def test_what_ties_do_to_the_released_rule() -> None:
    assert not any(Keeper(0.5, rule="percentile")(WORDS, [0.7] * 5)), "nothing is above the percentile"
    assert all(Keeper(0.5, rule="percentile")(WORDS, [1.0] * 5)), "everything, where it is 1"
    assert sum(Keeper(0.5)(WORDS, [0.7] * 5)) == 3


def test_repeats_of_forced_words() -> None:
    words = ["\n", "a", "\n", "b", "\n"]
    assert without_repeats(words, [True, False, True, True, True], {"\n"}) == [True, False, False, True, True]
    keeper = Keeper(0.0, forced={"\n"}, drop_repeats=True)
    assert keeper(words, [0.0] * 5) == [True, False, False, False, False]


def test_contexts_go_by_their_mean() -> None:
    scores = [[0.2, 0.2], [0.9], [0.5, 0.5, 0.5], []]
    assert best_contexts(scores, [2, 1, 3, 0], 4) == [False, True, True, True]
    assert best_contexts(scores, [2, 1, 3, 0], 0, forced={0}) == [True, False, False, False]
    assert best_contexts([[0.1], [0.3]], [5, 5], 1) == [False, True], "one stays"
    with pytest.raises(UserError, match="forced contexts"):
        best_contexts(scores, [2, 1, 3, 0], 4, forced={4})


def test_shares_sum_to_the_limit() -> None:
    assert shares([3, 3, 3], 4) == [2, 1, 1]
    assert shares([10, 0, 5], 6) == [4, 0, 2]
    assert shares([1, 2], 9) == [1, 2]
    rng = random.Random(1)
    for _ in range(50):
        sizes = [rng.randint(0, 30) for _ in range(5)]
        limit = rng.randint(0, sum(sizes))
        found = shares(sizes, limit)
        assert sum(found) == limit
        assert all(a <= b for a, b in zip(found, sizes))


def test_bad_input() -> None:
    with pytest.raises(UserError, match="rule"):
        Keeper(0.5, rule="best")
    with pytest.raises(UserError, match="rate"):
        Keeper(float("nan"))
    with pytest.raises(UserError, match="one per word"):
        Keeper(0.5)(WORDS, [0.1])
    with pytest.raises(UserError, match="finite"):
        Keeper(0.5)(WORDS, [float("nan")] * 5)
