"""Words of a text with their places in it, so that a part of the words can be read as text again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.errors import UserError

#: A run of letters and digits, which ``'``, ``-``, ``.`` and ``_`` may join (``don't``, ``e.g``, ``numpy.linalg``), or
#: any other single character that is no space.
WORD = re.compile(r"\w+(?:['\-._]\w+)*|[^\w\s]")


class Word(NamedTuple):
    """``text`` stands at ``[start, end)`` of the whole."""

    text: str
    start: int
    end: int

    @property
    def spoken(self) -> bool:
        """Whether there is a letter or digit in it; punctuation has none."""
        return any(letter.isalnum() for letter in self.text)


def split_spans(text: str, *, newlines: bool = False) -> list[Word]:
    """The words of ``text`` in their order. A sign of punctuation is a word of its own.

    Args:
        newlines: a run of line ends is a word too (``"\\n"``), so that a compressed text can keep its lines.
    """
    found = WORD.finditer(text) if not newlines else re.finditer(rf"{WORD.pattern}|\n(?:[^\S\n]*\n)*", text)
    return [Word("\n" if not match[0].strip() else match[0], *match.span()) for match in found]


def join_kept(words: Sequence[Word], keep: Sequence[bool]) -> str:
    """The kept words as text: neighbours that touched still touch, all others are a space apart.

    Nothing but words of the original can stand in the result, and they stand in their order.
    """
    if len(words) != len(keep):
        raise UserError("keep", f"{len(keep)} values", f"one per word, {len(words)}")
    parts: list[str] = []
    before: Word | None = None
    for word, kept in zip(words, keep):
        if not kept:
            continue
        apart = before is not None and before.end != word.start and "\n" not in (before.text, word.text)
        parts.append(" " + word.text if apart else word.text)
        before = word
    return "".join(parts)
