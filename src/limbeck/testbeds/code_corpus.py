"""Functions and their docstrings, read from the Python sources that are on this machine anyway.

The standard library and the packages of ``PACKAGES`` are read as text (``ast``, nothing is imported). The
sources differ between versions, so a corpus carries a hash of its content, and results are to be compared
within one hash.

Held-out functions come from standard-library files of their own: no training function shares a file, a
docstring or a body with them. A query is found among functions none of which has its docstring or its body a
second time.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from limbeck.data.store import cache_folder, content_hash, locked, written_aside
from limbeck.errors import MissingExtra

#: Packages whose sources are read for training, always installed where text is distilled.
PACKAGES = ("numpy", "scipy", "sklearn", "torch", "transformers", "networkx", "sympy")

_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "_bundled",
    "_vendor",
    "__pycache__",
}
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Recipe:
    """What is kept of the sources.

    Attributes:
        test, validation, train: numbers of functions.
        per_file: at most so many held-out functions of one file, so that no big module rules the test.
        doc_words: a docstring's first paragraph must have at least so many words.
        code_lines, code_characters: a body must have at least so many lines, and is cut after so many
            characters.
    """

    test: int = 1000
    validation: int = 300
    train: int = 8000
    per_file: int = 20
    doc_words: int = 5
    code_lines: int = 3
    code_characters: int = 800
    version: int = 1


@dataclass(frozen=True)
class Function:
    """One function: the first paragraph of its docstring and its source without the docstring."""

    file: str
    line: int
    name: str
    doc: str
    code: str


@dataclass(frozen=True)
class Corpus:
    """Held-out and training functions, with the SHA-256 of all their texts."""

    train: list[Function]
    validation: list[Function]
    test: list[Function]
    sha256: str


def corpus(recipe: Recipe | None = None) -> Corpus:
    """The corpus of this machine, parsed once and kept in the cache folder.

    Raises:
        MissingExtra: one of ``PACKAGES`` is not installed.
    """
    recipe = recipe or Recipe()
    sources = {"stdlib": sources_of("stdlib"), **{package: sources_of(package) for package in PACKAGES}}
    sizes = {f"{package}/{name}": path.stat().st_size for package in sources for name, path in sources[package]}
    key = content_hash({"recipe": asdict(recipe), "files": sizes})[:16]
    kept = cache_folder("corpora") / f"code-{key}.json"
    if not kept.is_file():
        with locked(f"code-{key}"):
            if not kept.is_file():
                made = _collect(recipe, sources)
                with written_aside(kept) as aside:
                    aside.write_text(json.dumps({name: [asdict(f) for f in part] for name, part in made.items()}))
    content = kept.read_text()
    parts = {name: [Function(**row) for row in rows] for name, rows in json.loads(content).items()}
    return Corpus(**parts, sha256=hashlib.sha256(content.encode()).hexdigest())


def nodes(source: str) -> Iterator[ast.AST]:
    """Every node of a source's syntax tree; none of what this Python cannot parse, and no warnings of what it would."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    yield from ast.walk(tree)


def functions(source: str, file: str, recipe: Recipe) -> Iterator[Function]:
    """The documented functions of one source text, in its order, without the trivial ones."""
    lines = source.splitlines()
    for node in nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found = _function(node, lines, file, recipe)
            if found is not None:
                yield found


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], file: str, recipe: Recipe
) -> Function | None:
    text = ast.get_docstring(node)
    if not text or len(node.body) < 2:
        return None
    doc = " ".join(re.split(r"\n\s*\n", text, maxsplit=1)[0].split())
    quoted, first = node.body[0], node.body[1]
    signature = lines[node.lineno - 1 : quoted.lineno - 1]
    body = lines[(quoted.end_lineno or quoted.lineno) : node.end_lineno]
    filled = [line for line in body if line.strip()]
    if doc.startswith(">>>") or len(_WORDS.findall(doc)) < recipe.doc_words or len(filled) < recipe.code_lines:
        return None
    if first.lineno <= (quoted.end_lineno or 0) or not signature:
        return None
    code = textwrap.dedent("\n".join([*signature, *filled]))[: recipe.code_characters]
    return Function(file, node.lineno, node.name, doc[: recipe.code_characters], code)


def _collect(recipe: Recipe, sources: dict[str, list[tuple[str, Path]]]) -> dict[str, list[Function]]:
    library = iter(_scattered(sources["stdlib"]))
    seen: set[str] = set()
    made = {}
    for part, count in (("test", recipe.test), ("validation", recipe.validation)):
        chosen: list[Function] = []
        while len(chosen) < count and (file := next(library, None)) is not None:
            chosen += list(_unique(_read(*file, recipe), seen))[: recipe.per_file]
        made[part] = chosen[:count]
    streams = [library, *(iter(_scattered(sources[package])) for package in PACKAGES)]
    pools = [_unique(_stream(stream, recipe), seen) for stream in streams]
    train: list[Function] = []
    # Round and round the packages, so that the largest one does not crowd out the others.
    while pools and len(train) < recipe.train:
        pools = [pool for pool in pools if _draw(pool, train, recipe.train)]
    return {**made, "train": train}


def _draw(pool: Iterator[Function], into: list[Function], limit: int) -> bool:
    """Move one function of the pool; whether the pool had one left."""
    if len(into) >= limit:
        return False
    function = next(pool, None)
    if function is not None:
        into.append(function)
    return function is not None


def _stream(files: Iterable[tuple[str, Path]], recipe: Recipe) -> Iterator[Function]:
    for name, path in files:
        yield from _read(name, path, recipe)


def _read(name: str, path: Path, recipe: Recipe) -> Iterator[Function]:
    return functions(path.read_text(encoding="utf-8", errors="replace"), name, recipe)


def _unique(found: Iterable[Function], seen: set[str]) -> Iterator[Function]:
    """Functions whose docstring and body are both new; everything that was looked at counts as seen."""
    for function in found:
        # The signature's name is part of the code, so the body is compared without its first line as well.
        body = function.code.split("\n", 1)[-1]
        marks = {" ".join(_WORDS.findall(text.lower())) for text in (function.doc, function.code, body)}
        if not marks & seen:
            yield function
        seen |= marks


def _scattered(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """A fixed order that has nothing to do with the names' alphabet."""
    return sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())


def sources_of(package: str) -> list[tuple[str, Path]]:
    """Name and path of every Python file of an installed package, or of the standard library (``stdlib``)."""
    if package == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise MissingExtra(package, "language")
        root = Path(found.origin).parent
    paths = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
    return [(f"{package}/{name}", path) for name, path in sorted(paths) if not _SKIPPED & set(name.split("/"))]
