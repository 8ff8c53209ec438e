"""Alignment of a text with a shorter one, its scores, and the filter."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from limbeck.data.alignment import Alignment, align, below_percentile, trusted
from limbeck.errors import UserError


def by_the_letter(original: Sequence[str], compressed: Sequence[str], window: int) -> list[bool]:
    """The sheet's steps 1 and 2, position by position, with its clamped borders."""
    labels, before, last = [False] * len(original), 0, len(original) - 1
    for word in compressed:
        hit = None
        for step in range(window):
            ahead, back = min(before + step, last), max(before - step, 0)
            if original[ahead].lower() == word.lower() and not labels[ahead]:
                hit = ahead
                before = before + window // 2 if ahead - before > window // 2 else ahead
                break
            if original[back].lower() == word.lower() and not labels[back]:
                hit = before = back
                break
        if hit is not None:
            labels[hit] = True
    return labels


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_follows_the_sheet_word_for_word(window: int) -> None:
    rng = random.Random(window)
    for _ in range(40):
        original = [rng.choice("abcdE") for _ in range(rng.randint(1, 30))]
        compressed = [rng.choice("abcdex") for _ in range(rng.randint(0, 15))]
        assert list(align(original, compressed, window).labels) == by_the_letter(original, compressed, window)


def test_repeats_take_the_nearest_free_place() -> None:
    original = ["the", "cat", "saw", "the", "dog", "and", "the", "bird"]
    assert align(original, ["the", "the", "the"]).labels == (True, False, False, True, False, False, True, False)
    # More often than it stands there: the fourth has no place.
    found = align(original, ["the", "the", "the", "the"])
    assert sum(found.labels) == 3
    assert found.found == 4
    assert found.alignment_gap == pytest.approx(1 / 8)
    # Behind "dog" the near one of two is meant, and it is the one in front of it that is nearest.
    assert align(original, ["dog", "the"]).labels == (False, False, False, True, True, False, False, False)


def test_order_and_case_may_differ() -> None:
    assert align(["A", "b", "c"], ["C", "a"]).labels == (True, False, True)


def test_one_far_hit_does_not_carry_the_window_away() -> None:
    original = ["x"] * 9 + ["far"] + ["near"]
    original[6] = "here"
    # "far" is 9 ahead of 0, more than half of 10: the window moves on by 5 only, and "here" at 6 is still near.
    labels = align(original, ["far", "here"], window=10).labels
    assert labels[9]
    assert labels[6]
    assert not align(["w", *["x"] * 9, "w2"], ["w2"], window=10).labels[10]


def test_scores_of_a_case_that_can_be_counted() -> None:
    found = align(["a", "b", "c", "d"], ["a", "x", "c", "y", "y"])
    assert (found.compressed, found.found) == (5, 2)
    assert found.variation_rate == pytest.approx(3 / 5)
    assert found.hitting_rate == found.matching_rate == pytest.approx(2 / 4)
    assert found.compression_rate == pytest.approx(5 / 4)
    assert found.alignment_gap == 0


def test_empty_texts() -> None:
    empty = align(["a"], [])
    assert empty.variation_rate == 1.0
    assert empty.labels == (False,)
    assert empty.matching_rate == 0
    nothing = align([], ["a"])
    assert nothing.labels == ()
    assert nothing.hitting_rate == 0
    assert nothing.variation_rate == 1.0


def made(variation: float, gap: float) -> Alignment:
    found = round(10 * (1 - variation))
    labels = found - round(10 * gap)
    return Alignment(tuple(place < labels for place in range(10)), 10, found)


def test_the_worst_tenth_of_each_score_goes_in_turn() -> None:
    pairs = [made(0.1 * (number % 10 == 0) * 9, 0.0) for number in range(20)]
    pairs[1] = made(0.0, 0.5)
    kept = trusted(pairs)
    assert not {0, 10} & set(kept), "much variation"
    assert 1 not in kept, "a gap"
    assert kept == [number for number in range(20) if number not in (0, 1, 10)]
    assert trusted(pairs, variation=None) == [number for number in range(20) if number != 1]
    assert trusted(pairs, variation=None, gap=None) == list(range(20))


def test_the_second_percentile_is_of_those_that_are_left() -> None:
    # All large gaps are where the variation is large too; among the rest the only gap is a small one, which goes.
    pairs = [made(0.6, 0.4), made(0.6, 0.4), *[made(0.0, 0.0)] * 9, made(0.0, 0.1)]
    assert trusted(pairs) == list(range(2, 11))


def test_equal_scores_stay_and_empty_texts_go() -> None:
    assert trusted([made(0.3, 0.0)] * 5) == [0, 1, 2, 3, 4]
    assert trusted([align(["a"], []), align(["a"], ["a"])], variation=None, gap=None) == [1]
    assert trusted([align(["a"], [])]) == []
    assert below_percentile([], 90) == []
    values = np.random.default_rng(0).random(100)
    assert below_percentile(values.tolist(), 90) == np.flatnonzero(values < np.percentile(values, 90)).tolist()


def test_bad_input() -> None:
    with pytest.raises(UserError, match="window"):
        align(["a"], ["a"], 0)
    with pytest.raises(UserError, match="percentile"):
        below_percentile([1.0], 101)
    with pytest.raises(UserError, match="scores"):
        below_percentile([float("nan")], 50)
