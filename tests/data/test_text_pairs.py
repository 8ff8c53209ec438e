from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.data.text_pairs import clean_pairs, read_pairs
from limbeck.errors import UserError

PAIRS = [("a cat", "a dog"), ("one, two", "three")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.txt", "a cat||a dog\n\none, two||three\n"),
        ("pairs.tsv", "a cat\ta dog\none, two\tthree\n"),
        ("pairs.jsonl", '["a cat", "a dog"]\n{"first": "one, two", "second": "three"}\n'),
    ],
)
def test_three_kinds_of_file_give_the_same_pairs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_pairs(tmp_path / name) == PAIRS


@pytest.mark.parametrize(
    ("name", "line"),
    [("pairs.txt", "a cat"), ("pairs.tsv", "a\tb\tc"), ("pairs.jsonl", '{"first": "a"}'), ("pairs.jsonl", "no json")],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, name: str, line: str) -> None:
    good = {"pairs.txt": "a||b", "pairs.tsv": "a\tb", "pairs.jsonl": '["a", "b"]'}[name]
    (tmp_path / name).write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match="line 2"):
        read_pairs(tmp_path / name)


def test_empty_and_repeated_pairs_are_dropped_and_counted_and_long_ones_counted() -> None:
    found = clean_pairs(
        [*PAIRS, ("a dog", " a  cat "), ("", "a dog"), ("a b c d", "e"), ("x", "x"), ("x", "x")], long=3
    )
    assert found.pairs == [*PAIRS, ("a b c d", "e"), ("x", "x")]
    assert found.counts() == {"pairs": 4, "empty": 1, "repeated": 2, "long": 1}
