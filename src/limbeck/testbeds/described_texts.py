"""Paragraphs of 36 to 64 words: what Python functions and classes do, with a summary by their author; manual pages.

A docstring's first paragraph is one sentence that its author wrote about the whole; the paragraph behind it says more.
So the second is a text and the first its summary, in the author's own words, not always the text's.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache

from limbeck.data.artefacts import fetch
from limbeck.data.store import cache_folder, content_hash, locked, written_aside
from limbeck.data.word_spans import split_spans
from limbeck.testbeds import code_corpus, manpages_corpus

#: Raised whenever the texts or their order change, so that what was made from them is never stale.
VERSION = 1
#: Words of a text and of a summary, at least and at most; signs of punctuation count.
WORDS, SUMMARY_WORDS = (36, 64), (4, 24)
#: At most so many texts of one file or page, so that no big one rules.
PER_FILE = 10
PACKAGES = ("stdlib", *code_corpus.PACKAGES)

_HEADING = re.compile(
    r"^(?:parameters|returns?|raises|args|arguments|notes?|examples?|see also|references)\b|^[.>:|*+-]"
)
_MARKUP = re.compile(r":\w+(?::\w+)?:(?=`)|``?|\*\*|_(?=\s|$)")


@dataclass(frozen=True)
class Described:
    """A text, its summary (empty for manual pages) and the file or page that it comes from."""

    text: str
    summary: str
    file: str


@cache
def docstrings() -> tuple[Described, ...]:
    """Of the packages on this machine, files in a fixed order that has nothing to do with their names."""
    files = [(package, name, path) for package in PACKAGES for name, path in code_corpus.sources_of(package)]
    sizes = {f"{package}/{name}": path.stat().st_size for package, name, path in files}
    return _kept("docstrings", sizes, lambda: _of_sources((name, path.read_bytes()) for _, name, path in files))


@cache
def manual() -> tuple[Described, ...]:
    """Of the manual pages; the same packages give the same texts on every machine."""
    pages = sorted(path for artefact in manpages_corpus.ARTEFACTS for path in fetch(artefact).rglob("*.gz"))
    sizes = {path.name: path.stat().st_size for path in pages}
    return _kept("manual", sizes, lambda: _of_pages((path.name, path.read_bytes()) for path in pages))


def texts_hash(texts: Iterable[Described]) -> str:
    """SHA-256 of texts in their order."""
    return content_hash({"texts": [[one.text, one.summary] for one in texts]})


def described(source: str, file: str) -> Iterator[Described]:
    """The texts of one Python source, in its order."""
    for node in code_corpus.nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            parts = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
            if len(parts) > 1 and not _HEADING.match(parts[1].strip().lower()):
                summary, text = (" ".join(_MARKUP.sub("", part).split()) for part in parts[:2])
                if _within(summary, SUMMARY_WORDS) and _within(text, WORDS):
                    yield Described(text, summary, file)


def _within(text: str, bounds: tuple[int, int]) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return bounds[0] <= len(split_spans(text)) <= bounds[1] and letters >= 0.88 * len(text)


def _of_sources(files: Iterable[tuple[str, bytes]]) -> Iterator[Described]:
    for name, content in files:
        yield from described(content.decode("utf-8", errors="replace"), name)


def _of_pages(pages: Iterable[tuple[str, bytes]]) -> Iterator[Described]:
    for name, content in pages:
        source = gzip.decompress(content).decode("utf-8", errors="replace")
        for paragraph in manpages_corpus.paragraphs(source):
            text = " ".join(paragraph.split())
            if _within(text, WORDS):
                yield Described(text, "", name.removesuffix(".gz"))


def _kept(name: str, sizes: dict[str, int], make: Callable[[], Iterator[Described]]) -> tuple[Described, ...]:
    """Read once and kept in the cache folder: no text or summary twice, few of a file, files scattered."""
    key = content_hash({"files": sizes, "version": VERSION, "limits": [WORDS, SUMMARY_WORDS, PER_FILE]})[:16]
    path = cache_folder("corpora") / f"described-{name}-{key}.json"
    with locked(path.stem):
        if not path.is_file():
            rows = [asdict(one) for one in _chosen(make())]
            with written_aside(path) as aside:
                aside.write_text(json.dumps(rows))
    return tuple(Described(**row) for row in json.loads(path.read_text()))


def _chosen(found: Iterable[Described]) -> list[Described]:
    seen: set[str] = set()
    by_file: dict[str, list[Described]] = {}
    for one in found:
        marks = {" ".join(part.lower().split()) for part in (one.text, one.summary) if part}
        rows = by_file.setdefault(one.file, [])
        if not marks & seen and len(rows) < PER_FILE:
            rows.append(one)
        seen |= marks
    order = sorted(by_file, key=lambda file: hashlib.sha256(file.encode()).digest())
    return [one for file in order for one in by_file[file]]
