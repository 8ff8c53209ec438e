"""WordNet's nouns as sentences: what a word means, and how near two meanings are in a taxonomy that people made.

The files are read as text. The same package gives the same senses on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from limbeck.data.artefacts import fetch

ARTEFACT = "wordnet-base"
PARTS = ("noun", "verb", "adj", "adv")
KINDS = ("near", "field", "any")
#: Raised whenever what is read changes, so that what was made from it is never stale.
VERSION = 2
# A gloss may hold quoted words; an example is quoted as a whole.
_NEXT = re.compile(r';\s*"')
_PARENTS = ("@", "@i")


@dataclass(frozen=True)
class Sense:
    """One meaning.

    Attributes:
        key: ``noun.02084071``, its place in the files.
        field: number of the lexicographer's file it was written in (animals, acts, feelings ...; 45 in all).
        words: the words that have this meaning.
        gloss: what it means.
        examples: sentences that use one of the words.
        parents: keys of the next more general meanings.
    """

    key: str
    field: int
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    parents: tuple[str, ...]


@cache
def senses() -> Mapping[str, Sense]:
    """All meanings by key, nouns first, in the order of the files."""
    folder = fetch(ARTEFACT)
    return {sense.key: sense for part in PARTS for sense in _read(folder / f"data.{part}", part)}


def _read(path: Path, part: str) -> list[Sense]:
    lines = path.read_text(encoding="latin-1").splitlines()
    # The licence stands in front, indented.
    return [parse(line, part) for line in lines if line[:1] != " "]


def parse(line: str, part: str) -> Sense:
    """One line of a data file: ``offset field type count word id ... count pointer offset part source ... | gloss``."""
    head, _, text = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = tuple(_plain(word) for word in fields[4 : 4 + 2 * count : 2])
    start = 4 + 2 * count
    pointers = [fields[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(fields[start]))]
    parents = tuple(f"{part}.{offset}" for kind, offset, *_ in pointers if kind in _PARENTS)
    gloss, *examples = _NEXT.split(text)
    quoted = tuple(example.rpartition('"')[0].strip() for example in examples)
    return Sense(f"{part}.{fields[0]}", int(fields[1]), words, gloss.strip(" ;:"), tuple(filter(None, quoted)), parents)


def _plain(word: str) -> str:
    # Adjectives carry their place in a sentence: ``galore(ip)``.
    return word.split("(")[0].replace("_", " ")


class Taxonomy:
    """Distances in the tree of more general meanings.

    Args:
        known: the senses; parents that are not among them are left out.
    """

    def __init__(self, known: Mapping[str, Sense]) -> None:
        self.known = known
        self._above: dict[str, dict[str, int]] = {}

    def parents(self, key: str) -> Sequence[str]:
        """The next more general senses."""
        return [one for one in self.known[key].parents if one in self.known]

    def above(self, key: str) -> Mapping[str, int]:
        """Every more general sense, and itself, with the fewest steps to it."""
        if key not in self._above:
            found = {key: 0}
            for parent in self.parents(key):
                for one, steps in self.above(parent).items():
                    found[one] = min(found.get(one, steps + 1), steps + 1)
            self._above[key] = found
        return self._above[key]

    def depth(self, key: str) -> int:
        """Steps to the root, counted with both ends, along the shortest way."""
        return 1 + max(self.above(key).values())

    @cached_property
    def children(self) -> Mapping[str, Sequence[str]]:
        """The next more special senses, in the order of the files."""
        found: dict[str, list[str]] = {}
        for key in self.known:
            for parent in self.parents(key):
                found.setdefault(parent, []).append(key)
        return found

    def similarity(self, first: str, second: str) -> float:
        """``2 d(c) / (2 d(c) + steps to it from both)``, c the common generalisation for which this is largest.

        1 for a sense and itself, 0 without a common one. Wu and Palmer, Verb Semantics and Lexical Selection, ACL 1994.
        """
        left, right = self.above(first), self.above(second)
        shared = left.keys() & right.keys()
        return max((2 * d / (2 * d + left[c] + right[c]) for c in shared for d in (self.depth(c),)), default=0.0)


def draw_pairs(taxonomy: Taxonomy, keys: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """``count`` different pairs of ``keys``, in turn of each of ``KINDS``.

    Near ones share a parent or a grandparent, others the lexicographer's file, the last are any two.
    """
    allowed = set(keys)
    fields: dict[int, list[str]] = {}
    for key in keys:
        fields.setdefault(taxonomy.known[key].field, []).append(key)
    made: list[tuple[str, str]] = []
    seen: set[frozenset[str]] = set()
    while len(made) < count:
        kind, first = KINDS[len(made) % len(KINDS)], rng.choice(keys)
        others: Sequence[str] = keys
        if kind == "field":
            others = fields[taxonomy.known[first].field]
        elif kind == "near":
            above = list(taxonomy.parents(first))
            if above and rng.random() < 0.5:
                above = [higher for parent in above for higher in taxonomy.parents(parent)] or above
            below = [key for parent in above for key in taxonomy.children[parent]]
            if above != list(taxonomy.parents(first)):
                below = [key for child in below for key in taxonomy.children.get(child, ())]
            others = sorted(allowed.intersection(below))
        if not others or (second := rng.choice(others)) == first or frozenset((first, second)) in seen:
            continue
        seen.add(frozenset((first, second)))
        made.append((first, second))
    return made
