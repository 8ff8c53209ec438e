"""Two tokenizations of one text, cut into spans at the places where both end a token.

Places are counted in bytes of the text, so that letters which are split over tokens (emoji, ideographs) are aligned
exactly. A span is the shortest stretch between two places where both tokenizations have a boundary: every token
belongs to one span at most, and the spans of two whole tokenizations cover the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from limbeck.tokens import special_ids, token_bytes


class Cut(NamedTuple):
    """A tokenization: token ids, and the byte of the text behind each. ``exact`` is False where the tokenizer changed
    the text (another normal form, lower case) and the places are those that it reports, letter by letter."""

    ids: list[int]
    ends: list[int]
    exact: bool


class Cutter:
    """A tokenizer of transformers with the bytes of its tokens.

    Attributes:
        bytes: of every id; None where there is no token.
        special: ids that stand for no text.
        adds_space: it puts a space before a text that begins without one.
        lead: ids that it puts before a text (a begin-of-text token).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bytes, self.special = token_bytes(tokenizer), special_ids(tokenizer)
        plain = self._ids("a")
        self.adds_space = self.joined(plain) == b" a"
        whole = list(tokenizer("a").input_ids)
        self.lead = whole[: whole.index(plain[0])] if plain and plain[0] in whole else []

    def joined(self, ids: Sequence[int]) -> bytes:
        """The bytes of some tokens."""
        return b"".join(map(self.of, ids))

    def of(self, number: int) -> bytes:
        """The bytes of a token; none for an id that is only a padded row of a network's table."""
        return (self.bytes[number] if number < len(self.bytes) else None) or b""

    def marks(self, number: int) -> bool:
        """Whether a token stands for no text."""
        return number in self.special or not self.of(number)

    def cut(self, text: str) -> Cut:
        """Tokenize a text, without special tokens around it."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, data = list(found["input_ids"]), text.encode()
        written = self.joined(ids)
        if written == data:
            return Cut(ids, self._ends(ids), True)
        if written == b" " + data:
            return Cut(ids, [max(end - 1, 0) for end in self._ends(ids)], True)
        return Cut(ids, reported_ends(text, found["offset_mapping"]), False)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ends(self, ids: Sequence[int]) -> list[int]:
        ends, end = [], 0
        for number in ids:
            end += len(self.of(number))
            ends.append(end)
        return ends


def reported_ends(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes behind every token from the letters ``(first, behind the last)`` that a tokenizer reports for it.

    Where tokens share a letter only the last of them ends there. White space between tokens belongs to the next one;
    what stands behind the last token, to the last.
    """
    places = [0]
    for letter in text:
        places.append(places[-1] + len(letter.encode()))
    ends = [stop for _, stop in offsets]
    for number in range(len(ends) - 2, -1, -1):
        if offsets[number + 1][0] < ends[number]:
            ends[number] = ends[number + 1]
    if ends and not text[ends[-1] :].strip():
        ends[-1] = len(text)
    return [places[end] for end in ends]


def match_spans(student: Sequence[int], teacher: Sequence[int]) -> tuple[list[int], list[int]]:
    """Number of every token's span, from the byte behind every token of both tokenizations; -1 behind the last common
    boundary. A token without bytes belongs to what is before it, at the beginning to what follows."""
    common = sorted((set(student) & set(teacher)) - {0})

    def number(end: int) -> int:
        place = bisect_left(common, max(end, 1))
        return place if place < len(common) else -1

    return [number(end) for end in student], [number(end) for end in teacher]


def readable(data: bytes) -> tuple[str, list[int], list[tuple[int, int]]]:
    """A text of bytes that need not be one (a model may stop, or err, inside a letter).

    Returns:
        the text, with U+FFFD for what is no text; for every place in ``data`` the place in the text's own bytes; and
        the stretches of the text's bytes that stand for what is none.
    """
    parts: list[str] = []
    places, broken = [0] * (len(data) + 1), []
    at = out = 0
    while at < len(data):
        try:
            good, bad = data[at:].decode(), 0
        except UnicodeDecodeError as error:
            good, bad = data[at : at + error.start].decode(), error.end - error.start
        length = len(good.encode())
        for step in range(length + 1):
            places[at + step] = out + step
        parts.append(good)
        at, out = at + length, out + length
        if bad:
            parts.append("\ufffd")
            broken.append((out, out + 3))
            out += 3
            for step in range(1, bad + 1):
                places[at + step] = out
            at += bad
    return "".join(parts), places, broken


@dataclass(frozen=True)
class AlignmentReport:
    """Counts of an alignment, which add up over rows and batches.

    Attributes:
        spans: that are compared.
        one_to_one: of these, with one token on both sides.
        student_tokens, teacher_tokens: inside the spans.
        text: bytes of the counted text.
        unaligned: of these, in no span: at the border of the prompt, broken letters, special tokens that the other
            side does not have, what a truncated teacher does not see.
        truncated: rows whose teacher text was cut at its longest.
        inexact: rows with a text that the teacher's tokenizer changes.
        rows: texts.
    """

    spans: int = 0
    one_to_one: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    text: int = 0
    unaligned: int = 0
    truncated: int = 0
    inexact: int = 0
    rows: int = 0

    def __add__(self, other: AlignmentReport) -> AlignmentReport:
        return AlignmentReport(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def summary(self) -> dict[str, float]:
        """Shares and means: ``one_to_one``, ``student_tokens_per_span``, ``teacher_tokens_per_span``, ``unaligned``,
        ``truncated``, ``inexact``."""
        spans, rows = max(self.spans, 1), max(self.rows, 1)
        return {
            "one_to_one": self.one_to_one / spans,
            "student_tokens_per_span": self.student_tokens / spans,
            "teacher_tokens_per_span": self.teacher_tokens / spans,
            "unaligned": self.unaligned / max(self.text, 1),
            "truncated": self.truncated / rows,
            "inexact": self.inexact / rows,
        }
