"""Words of eight European languages from Debian's word lists: who speaks like this?"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.store import content_hash
from limbeck.errors import UserError

#: Language -> artefact, file, encoding.
LANGUAGES = {
    "english": ("wamerican", "american-english", "utf-8"),
    "french": ("wfrench", "french", "utf-8"),
    "german": ("wngerman", "ngerman", "utf-8"),
    "spanish": ("wspanish", "spanish", "utf-8"),
    "italian": ("witalian", "italian", "utf-8"),
    "dutch": ("wdutch", "dutch", "utf-8"),
    "swedish": ("wswedish", "swedish", "latin-1"),
    "polish": ("wpolish", "polish", "utf-8"),
}
#: Raised whenever what is read changes, so that what was made from it is never stale.
VERSION = 1


def hashes() -> dict[str, str]:
    """SHA-256 of every list's package."""
    return {name: artefact(name).sha256 for name, _, _ in LANGUAGES.values()}


def own_words(count: int, *, shortest: int = 4, longest: int = 7) -> dict[str, list[str]]:
    """``count`` words per language that stand in no other language's list, in an order that looks random.

    Words are lower-cased, made of letters alone, and ``shortest`` to ``longest`` bytes of UTF-8 long. A list of
    inflected forms (Polish has four million) is sampled as evenly as a short one.

    Raises:
        UserError: a language has fewer.
    """
    lists = {language: _read(language, shortest, longest) for language in LANGUAGES}
    seen = Counter(word for words in lists.values() for word in words)
    found = {}
    for language, words in lists.items():
        alone = sorted((word for word in words if seen[word] == 1), key=lambda word: content_hash({"word": word}))
        if len(alone) < count:
            raise UserError("count", count, f"at most {len(alone)}, the words of {language} alone")
        found[language] = alone[:count]
    return found


@cache
def _read(language: str, shortest: int, longest: int) -> Sequence[str]:
    name, file, encoding = LANGUAGES[language]
    lines = (fetch(name) / file).read_text(encoding=encoding).split("\n")
    words = {unicodedata.normalize("NFC", line.lower()) for line in lines if line.isalpha()}
    return sorted(word for word in words if shortest <= len(word.encode()) <= longest)
