"""Huffman's code lengths against the properties that define them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.quantization import code_lengths, mean_bits


def test_by_hand() -> None:
    counts = {"a": 45, "b": 13, "c": 12, "d": 16, "e": 9, "f": 5}
    assert code_lengths(counts) == {"a": 1, "b": 3, "c": 3, "d": 3, "e": 4, "f": 4}
    assert mean_bits(counts) == pytest.approx(2.24)
    assert mean_bits({0: 5, 1: 5, 2: 5, 3: 5}) == 2


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 300), st.integers(1, 1000), min_size=2, max_size=40))
def test_a_prefix_code_within_a_bit_of_the_entropy(counts: dict[int, int]) -> None:
    lengths, total = code_lengths(counts), sum(counts.values())
    assert sum(2.0**-bits for bits in lengths.values()) == 1
    entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
    assert entropy - 1e-9 <= mean_bits(counts) < entropy + 1


def test_few_symbols() -> None:
    assert code_lengths({7: 3}) == {7: 0}
    assert mean_bits({7: 3}) == 0
    assert mean_bits({}) == 0
    assert code_lengths({1: 0, 2: 4, 3: 1}) == {2: 1, 3: 1}
    with pytest.raises(UserError, match="counts"):
        code_lengths({1: -1})
