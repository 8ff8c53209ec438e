"""Words with their places, and texts made of some of them."""

from __future__ import annotations

import pytest

from limbeck.data.word_spans import join_kept, split_spans
from limbeck.errors import UserError

TEXT = "Don't call numpy.linalg (e.g. twice); see  open(2)."


def test_words_stand_where_they_say() -> None:
    words = split_spans(TEXT)
    assert all(TEXT[word.start : word.end] == word.text for word in words)
    assert [word.text for word in words[:6]] == ["Don't", "call", "numpy.linalg", "(", "e.g", "."]
    assert "".join(word.text for word in words) == "".join(TEXT.split())
    assert [word.text for word in words if not word.spoken] == ["(", ".", ")", ";", "(", ")", "."]


def test_line_ends_are_words_when_asked_for() -> None:
    assert [word.text for word in split_spans("a\n\n b\nc", newlines=True)] == ["a", "\n", "b", "\n", "c"]
    assert [word.text for word in split_spans("a\n\n b")] == ["a", "b"]
    words = split_spans("one\n\n two three", newlines=True)
    assert join_kept(words, [True, True, False, True]) == "one\nthree"


def test_kept_words_touch_only_where_they_touched() -> None:
    words = split_spans("open(2), read")
    assert join_kept(words, [True] * len(words)) == "open(2), read"
    assert join_kept(words, [True, False, True, True, False, True]) == "open 2) read"
    assert join_kept(words, [False] * len(words)) == ""
    assert split_spans("  ") == []
    assert join_kept([], []) == ""


def test_one_mark_per_word() -> None:
    with pytest.raises(UserError, match="keep"):
        join_kept(split_spans("a b"), [True])
