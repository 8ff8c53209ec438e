from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from limbeck.language.alignment import AlignmentReport, Cutter, match_spans, readable, reported_ends
from tests.models.tiny import full_byte_tokenizer, piece_tokenizer, word_tokenizer

SCRIPTS = [
    "abcdef XYZ.,;", "\u00e9\u00fc\u00df\u0142", "e\u0301o\u0308n\u0303", "\u6f22\u5b57\u4eee\u540d\u4ea4",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f642\U0001f600", "\U0001f469\u200d\U0001f467", "  \n\t\u00a0", "0123", "\ufdfa\ufb01\u2126",
]  # fmt: skip
WORDS = ["the quick ", "still", " good", "goo", "\u6f22\u5b57", "a good film "]


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        parts = generator.choices([*WORDS, *("".join(generator.choices(script, k=3)) for script in SCRIPTS)], k=8)
        found.append("".join(parts))
    return found


@pytest.fixture(scope="module")
def cutters() -> dict[str, Cutter]:
    return {
        "coarse": Cutter(full_byte_tokenizer(600, texts(40, 1))),
        "fine": Cutter(full_byte_tokenizer(270, texts(40, 2))),
        "pieces": Cutter(piece_tokenizer()),
    }


def stretches(ends: list[int], spans: list[int]) -> dict[int, tuple[int, int]]:
    """From which byte to which every span goes, by one side's tokens."""
    found: dict[int, tuple[int, int]] = {}
    for start, end, span in zip([0, *ends], ends, spans):
        first, last = found.get(span, (start, end))
        found[span] = min(first, start), max(last, end)
    return found


def check(text: str, one: Any, two: Any) -> tuple[list[int], list[int]]:
    ours, theirs = match_spans(one.ends, two.ends)
    assert -1 not in ours, "the last boundary of both is the text's end"
    assert -1 not in theirs
    left, right = stretches(one.ends, ours), stretches(two.ends, theirs)
    assert left == right, "boundaries coincide"
    # In their order the spans cover the text without gap or overlap.
    data, rebuilt, at = text.encode(), b"", 0
    for start, end in (left[span] for span in range(len(left))):
        assert start == at
        rebuilt, at = rebuilt + data[start:end], end
        # Smallest: no boundary inside that both have.
        assert not {place for place in one.ends if start < place < end} & set(two.ends)
    assert rebuilt == data
    return ours, theirs


@pytest.mark.parametrize("pair", list(itertools.permutations(["coarse", "fine", "pieces"], 2)), ids="-".join)
def test_spans_cover_every_text_and_share_their_boundaries(pair: tuple[str, str], cutters: dict[str, Cutter]) -> None:
    shapes = set()
    for text in texts(60, 3):
        one, two = (cutters[name].cut(text) for name in pair)
        assert one.exact
        assert two.exact
        ours, theirs = check(text, one, two)
        shapes |= {(ours.count(span), theirs.count(span)) for span in set(ours)}
    assert len(shapes) > 3, "one to one, one to many and many to one all occur"


def test_a_tokenizer_with_itself_is_one_to_one(cutters: dict[str, Cutter]) -> None:
    for text in texts(5):
        cut = cutters["coarse"].cut(text)
        ours, theirs = match_spans(cut.ends, cut.ends)
        assert ours == theirs == list(range(len(cut.ids)))


def test_a_letter_split_over_tokens_is_aligned_by_its_bytes(cutters: dict[str, Cutter]) -> None:
    fine, pieces = cutters["fine"].cut("\u4ea4"), cutters["pieces"].cut("\u4ea4")
    # Three bytes each, and the mark of SentencePiece's own space before them.
    assert fine.ends == [1, 2, 3]
    assert pieces.ends == [0, 1, 2, 3]
    assert match_spans(fine.ends, pieces.ends) == ([0, 1, 2], [0, 0, 1, 2])


def test_places_that_a_tokenizer_reports(cutters: dict[str, Cutter]) -> None:
    words = Cutter(word_tokenizer())
    for text in ("The quick  BROWN fox", "good films \u00e9\u00e9 \u6f22", "dog "):
        cut = words.cut(text)
        assert not cut.exact
        check(text, cutters["coarse"].cut(text), cut)
    # A letter that is shared by tokens ends with the last; white space belongs to what follows.
    assert reported_ends("\u00e9 a", [(0, 1), (0, 1), (2, 3)]) == [2, 2, 4]


def test_broken_letters_are_marked() -> None:
    whole = "a\U0001f642b".encode()
    assert readable(whole) == ("a\U0001f642b", list(range(7)), [])
    text, places, broken = readable(whole[:3] + b"xy\xff")
    assert text == "a\ufffdxy\ufffd"
    assert broken == [(1, 4), (6, 9)]
    assert places == [0, 1, 4, 4, 5, 6, 9]


def test_reports_add_up() -> None:
    one = AlignmentReport(spans=4, one_to_one=2, student_tokens=6, teacher_tokens=8, text=20, unaligned=5, rows=1)
    both = one + AlignmentReport(rows=1, truncated=1)
    assert both.summary() == {
        "one_to_one": 0.5, "student_tokens_per_span": 1.5, "teacher_tokens_per_span": 2.0, "unaligned": 0.25,
        "truncated": 0.5, "inexact": 0.0,
    }  # fmt: skip
