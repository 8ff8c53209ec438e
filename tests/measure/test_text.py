from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.measure.text import distinct_n, exact_match, excess_error, rouge_l, token_f1


def test_rouge_l_by_hand() -> None:
    assert rouge_l(["police kill the gunman"], ["police killed the gunman"]) == [pytest.approx(0.75)]
    # A subsequence need not be one piece, but it keeps the order.
    assert rouge_l(["the gunman police kill"], ["police killed the gunman"]) == [pytest.approx(0.5)]
    assert rouge_l(["a b c d e"], ["A x C"]) == [pytest.approx(2 * 2 / 8)]
    assert rouge_l(["", "a", ""], ["a", "", ""]) == [0.0, 0.0, 1.0]
    with pytest.raises(UserError):
        rouge_l(["a"], [])


def test_rouge_l_agrees_with_a_plain_recursion() -> None:
    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return longest(a[:-1], b[:-1]) + 1
        return max(longest(a[:-1], b), longest(a, b[:-1]))

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = ([str(int(x)) for x in torch.randint(4, (6,), generator=generator)] for _ in range(2))
        assert rouge_l([" ".join(a)], [" ".join(b)])[0] == pytest.approx(2 * longest(a, b) / 12)


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a"], 2) == 0.0
    with pytest.raises(UserError):
        distinct_n(["a"], 0)


def test_excess_error() -> None:
    own, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    found = excess_error(own, mask, torch.tensor([[1.0]]), torch.tensor([[True]]))
    assert found == {"own": 2.0, "reference": 1.0, "excess": 1.0}
    assert excess_error(own, mask, own, mask)["excess"] == 0.0
    assert excess_error(own, mask, own, mask, upto=1)["own"] == 1.0
    with pytest.raises(UserError):
        excess_error(own, ~mask & False, own, mask)


def test_token_f1_counts_words_in_any_order() -> None:
    assert token_f1(["b a a", "", "x"], ["A b c", "", ""]) == [pytest.approx(2 / 3), 1.0, 0.0]
    with pytest.raises(UserError, match="candidates"):
        token_f1(["a"], [])


def test_exact_matches_are_of_the_same_words_in_order() -> None:
    assert exact_match(["The  end", "end the", "", "a"], ["the end", "the end", "", "a b"]) == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(UserError, match="candidates"):
        exact_match(["a"], [])
