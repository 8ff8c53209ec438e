"""Sentence pairs from files, and what must be left out of a pool of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

Pair = tuple[str, str]


@dataclass(frozen=True)
class Cleaned:
    """Pairs that are fit for a pool, and how many were not.

    Attributes:
        pairs: what is left, in its order.
        empty: pairs with an empty sentence.
        repeated: pairs that were there before, in either order.
        long: pairs of ``pairs`` with a sentence of more words than asked about; they stay, and will be cut.
    """

    pairs: list[Pair]
    empty: int
    repeated: int
    long: int

    def counts(self) -> dict[str, int]:
        """The numbers, for a report."""
        return {"pairs": len(self.pairs), **{name: n for name, n in asdict(self).items() if name != "pairs"}}


def clean_pairs(pairs: Iterable[Pair], long: int = 64) -> Cleaned:
    """Drop pairs with an empty sentence and repeated ones; count sentences of more than ``long`` words."""
    kept: dict[frozenset[str], Pair] = {}
    empty = repeated = 0
    for first, second in pairs:
        first, second = " ".join(first.split()), " ".join(second.split())
        key = frozenset((first, second))
        if not first or not second:
            empty += 1
        elif key in kept:
            repeated += 1
        else:
            kept[key] = (first, second)
    found = list(kept.values())
    return Cleaned(found, empty, repeated, sum(max(len(text.split()) for text in pair) > long for pair in found))


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs of a file: ``.jsonl`` (a list of two texts, or ``first`` and ``second``, a line), ``.tsv`` (two columns, no
    head), and otherwise ``one sentence||another`` a line.

    Raises:
        UserError: a line that is not a pair; it names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("pairs", str(file), "an existing file")
    read = {".jsonl": _of_json, ".tsv": _of_columns}.get(file.suffix, _of_bars)
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        parts = read(line)
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise UserError(f"{file.name} line {number}", line[:60], "two sentences")
        found.append((parts[0].strip(), parts[1].strip()))
    return found


def _of_json(line: str) -> list[Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return []
    return [value.get("first"), value.get("second")] if isinstance(value, dict) else list(value)


def _of_columns(line: str) -> list[Any]:
    return list(line.split("\t"))


def _of_bars(line: str) -> list[Any]:
    return list(line.split("||"))
