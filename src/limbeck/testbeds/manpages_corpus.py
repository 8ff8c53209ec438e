"""English sentences of the Linux manual pages, each with the section that its page belongs to.

The pages are read as text: a few roff requests are understood, everything else (code, tables, synopses, lists of
references) is left out. The same packages give the same sentences on every machine.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from limbeck.data.artefacts import fetch

ARTEFACTS = ("manpages", "manpages-dev")
#: Sections with enough pages in these packages, and what they are about; the position is the label.
SECTIONS = {
    "2": "system calls",
    "3": "library functions",
    "4": "devices",
    "5": "file formats",
    "7": "overviews and conventions",
}
#: At most so many sentences of one section, so that the largest does not crowd out the others.
PER_SECTION = 5000
#: Raised whenever the sentences or their order change, so that what was made from them is never stale.
VERSION = 1

_LEFT_OUT = {"NAME", "SYNOPSIS", "SEE ALSO", "ATTRIBUTES", "STANDARDS", "VERSIONS", "HISTORY", "COLOPHON", "LIBRARY"}
_BLOCKS = {"EX": "EE", "nf": "fi", "TS": "TE", "SY": "YS"}
_FONTS = {"B", "I", "SM", "SB"}
_MIXED_FONTS = {"BR", "IR", "RB", "RI", "BI", "IB"}
_ESCAPES = ((r"\-", "-"), (r"\e", "\\"), (r"\(aq", "'"), (r"\(dq", '"'), (r"\(em", " - "), (r"\(en", "-"), (r"\ ", " "))
_OTHER_ESCAPES = re.compile(r"\\(?:f(?:\[[^]]*\]|\(..|.)|\(..|\[[^]]*\]|[&,/%:|^~c])")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|(\S+)')
_ENDS = re.compile(r"(?<=[a-z0-9)\]\"'][.!?:;])\s+(?=[A-Z(\"'])")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]*")


@dataclass(frozen=True)
class Sentence:
    """One sentence, the page it comes from, such as ``open.2``, and the number of its section in ``SECTIONS``."""

    text: str
    page: str
    label: int


@cache
def sentences() -> tuple[Sentence, ...]:
    """All sentences in a fixed order that has nothing to do with pages or sections; no text occurs twice."""
    found: dict[str, Sentence] = {}
    for artefact in ARTEFACTS:
        for path in sorted(fetch(artefact).rglob("*.gz")):
            name, section = path.name.removesuffix(".gz").rsplit(".", 1)
            if section in SECTIONS:
                source = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
                for text in prose(source):
                    found.setdefault(text, Sentence(text, f"{name}.{section}", list(SECTIONS).index(section)))
    kept: list[Sentence] = []
    for label in range(len(SECTIONS)):
        kept += _scattered([one for one in found.values() if one.label == label], "choice")[:PER_SECTION]
    return tuple(_scattered(kept, "order"))


def prose(source: str) -> Iterator[str]:
    """The sentences of one page: 6 to 60 words, most of their characters letters."""
    for paragraph in paragraphs(source):
        for sentence in _ENDS.split(paragraph):
            text = " ".join(sentence.split())
            letters = sum(character.isalpha() or character == " " for character in text)
            if 6 <= len(_WORDS.findall(text)) <= 60 and letters >= 0.8 * len(text):
                yield text


def paragraphs(source: str) -> Iterator[str]:
    """The paragraphs of running text of one page, each on one line."""
    lines: list[str] = []
    block_end, heading = "", ""
    for line in source.splitlines():
        request = re.match(r"[.'][ \t]*([A-Za-z]+)[ \t]*(.*)", line)
        name, rest = request.groups() if request else ("", "")
        if block_end:
            block_end = "" if name == block_end else block_end
            continue
        if name == "SH":
            heading = _plain(rest).strip('" ')
        if name in _BLOCKS:
            block_end = _BLOCKS[name]
        shown = ""
        if name in _FONTS or name in _MIXED_FONTS:
            arguments = [quoted or bare for quoted, bare in _ARGUMENT.findall(rest.split(r" \"")[0])]
            shown = ("" if name in _MIXED_FONTS else " ").join(arguments)
        elif line[:1] not in (".", "'"):
            shown = line
        elif lines and not line.startswith((r".\"", r"'\"")):
            yield _plain(" ".join(lines))
            lines = []
        if shown and heading not in _LEFT_OUT:
            lines.append(shown)
    if lines:
        yield _plain(" ".join(lines))


def _scattered(found: list[Sentence], salt: str) -> list[Sentence]:
    return sorted(found, key=lambda one: hashlib.sha256(f"{salt}{one.text}".encode()).digest())


def _plain(text: str) -> str:
    """Text without roff's escapes."""
    text = text.split(r"\"")[0]
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return _OTHER_ESCAPES.sub("", text)
