"""Tables of texts, labels and numbers: read from files, and their columns understood."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from limbeck.errors import UserError, first_line

ENDINGS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "arrow": (".arrow",),
}
SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLIT_WORDS |= {"val": "validation", "dev": "validation", "test": "test", "eval": "test"}

TEXT = (
    "text",
    "sentence",
    "content",
    "body",
    "review",
    "comment",
    "utterance",
    "document",
    "message",
    "description",
)
LABEL = (
    "label",
    "labels",
    "target",
    "class",
    "category",
    "score",
    "rating",
    "stars",
    "sentiment",
    "intent",
    "y",
)
IMAGE = ("image", "img", "picture")
PAIRS = (
    ("query", "document"), ("query", "passage"), ("question", "answer"), ("anchor", "positive"), ("query", "text"),
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("text1", "text2"), ("text_a", "text_b"), ("doc", "code"),
    ("docstring", "code"), ("title", "body"),
)  # fmt: skip
#: What ``columns`` may name.
ROLES = ("text", "text_pair", "label", "image")


@dataclass(frozen=True)
class Sheet:
    """A table by split, with the class names that its files declare."""

    tables: Mapping[str, pa.Table]
    classes: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def whole(self) -> pa.Table:
        """The first table: the others must have its columns."""
        return next(iter(self.tables.values()))


@dataclass(frozen=True)
class Columns:
    """Which column plays which part, and why."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    image: str | None = None
    notes: tuple[str, ...] = ()


def read_sheet(path: Path, kind: str, key: str = "data") -> Sheet:
    """Read a file, or the files of a folder sorted into splits by their names."""
    reference = f"{kind}:{path}"
    if path.is_file():
        files = {"train": [path]}
    elif path.is_dir():
        files = split_files(sorted(file for ending in ENDINGS[kind] for file in path.rglob(f"*{ending}")), path)
        if not files:
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise UserError(key, reference, f"a folder with {' or '.join(ENDINGS[kind])} files", f"it holds {inside}")
    else:
        raise UserError(key, reference, near_files(path, ENDINGS[kind]), "no such file")
    tables = {
        split: _concatenated([read_table(file, kind, key) for file in found], key) for split, found in files.items()
    }
    first = next(iter(tables.values()))
    for split, table in tables.items():
        missing = [name for name in first.column_names if name not in table.column_names]
        if missing:
            raise UserError(f"{key} {split}", f"no column {missing[0]}", table.column_names)
    return Sheet(tables, declared_classes(first.schema))


def split_files(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Files by split, as their names or folders say (``train-0.parquet``, ``test/x.csv``); else all are training."""
    found: dict[str, list[Path]] = {}
    for file in files:
        words = [part for step in file.relative_to(root).parts for part in step.lower().replace("_", "-").split("-")]
        named = [SPLIT_WORDS[word.split(".")[0]] for word in words if word.split(".")[0] in SPLIT_WORDS]
        found.setdefault(named[0] if named else "", []).append(file)
    if "train" not in found and "" in found:
        found = {"train": found.pop(""), **found}
    found.pop("", None)
    return found


def read_table(path: Path, kind: str, key: str = "data") -> pa.Table:
    """One file as a table; a file that cannot be read is refused with the reason."""
    try:
        table = _READERS[kind](path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(key, f"{kind}:{path}", f"a readable {kind} file", reason) from error
    return table


def choose_columns(
    sheet: Sheet, task: str | None, asked: Mapping[str, str] | None = None, key: str = "data"
) -> Columns:
    """Find the columns of texts, labels and images by name, then by type; ``asked`` overrules.

    Raises:
        UserError: ``asked`` names no part or no column, or nothing that can be an input is there.
    """
    asked = dict(asked or {})
    table = sheet.whole
    names = table.column_names
    for role, column in asked.items():
        if role not in ROLES:
            raise UserError("columns", role, ROLES)
        if column not in names:
            raise UserError(f"columns.{role}", column, names)
    texts = [name for name in names if is_text(table.schema.field(name).type)]
    notes: list[str] = []
    label = asked.get("label") or _label(table, sheet, texts, task, set(asked.values()))
    image = asked.get("image") or _image(table, texts)
    if image and "text" not in asked:
        return Columns(image=image, label=label, notes=(f"column {image} holds the images",))
    text: str | None = asked.get("text")
    pair: str | None = asked.get("text_pair")
    free = [name for name in texts if name not in {label, text, pair}]
    if text is None and pair is None and task not in ("causal-lm",):
        for both in PAIRS:
            first, second = _named(free, *both)
            if first and second:
                text, pair = first, second
                break
        if text:
            notes.append(f"columns {text} and {pair} are read as pairs of texts")
    if text is None:
        text, reason = _text(table, free)
        if text is None:
            hint = "name it with columns={'text': ...}"
            raise UserError(
                f"{key} columns",
                ", ".join(f"{f.name} ({f.type})" for f in table.schema),
                "a column of texts",
                hint,
            )
        others = ", ".join(name for name in free if name != text)
        notes.append(f"column {text} holds the texts ({reason})" + (f"; not read: {others}" if others else ""))
    if label is not None and task not in ("embedding", "causal-lm"):
        notes.append(f"column {label} holds the targets")
    return Columns(text=text, text_pair=pair, label=label, notes=tuple(notes))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column type holds texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_image(kind: pa.DataType) -> bool:
    """Whether a column type holds images as the ``datasets`` library writes them, or their bytes."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def declared_classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Class names per column that the ``datasets`` library noted in a file."""
    noted = (schema.metadata or {}).get(b"huggingface")
    return feature_classes(json.loads(noted).get("info", {}).get("features", {})) if noted else {}


def feature_classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Class names per column of a ``features`` description of the ``datasets`` library."""
    return {
        name: [str(label) for label in kind["names"]]
        for name, kind in (features or {}).items()
        if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }


def near_files(path: Path, endings: Iterable[str]) -> str:
    """What could have been meant by a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f"an existing path; there is no folder {folder}"
    wanted = tuple(endings)
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or entry.name.endswith(wanted or ("",)))
    )
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.5) or names[:8]
    return f"an existing path; in {folder} there is {', '.join(near) or 'nothing of this kind'}"


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
    if not header.strip():
        raise ValueError("the file is empty")
    delimiter = max(",\t;", key=header.count)
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(strings_can_be_null=False),
    )


def _read_jsonl(path: Path) -> pa.Table:
    from pyarrow import json as arrow_json

    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as stream:
        if stream.read(64).lstrip().startswith(b"["):
            raise ValueError("the file is one JSON list; write one object per line")
    return arrow_json.read_json(path)


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl, "arrow": _read_arrow}


def _concatenated(tables: Sequence[pa.Table], key: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
    except pa.ArrowException as error:
        raise UserError(key, "files whose columns differ", "files with the same columns", str(error)) from error


def _named(names: Sequence[str], *wanted: str) -> list[str | None]:
    lowered = {name.lower(): name for name in names}
    return [lowered.get(word) for word in wanted]


def _image(table: pa.Table, texts: Sequence[str]) -> str | None:
    kinds = [name for name in table.column_names if is_image(table.schema.field(name).type)]
    return next((name for name in _named(kinds, *IMAGE) if name), kinds[0] if len(kinds) == 1 and not texts else None)


def _label(table: pa.Table, sheet: Sheet, texts: Sequence[str], task: str | None, taken: set[str]) -> str | None:
    names = [name for name in table.column_names if name not in taken]
    declared = [name for name in names if name in sheet.classes]
    named = [name for name in _named(names, *LABEL) if name]
    if declared or named:
        return (declared or named)[0]
    if task in ("embedding", "causal-lm"):
        return None
    plain = [name for name in names if name not in texts and _is_plain(table.schema.field(name).type)]
    return plain[0] if len(plain) == 1 else None


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _text(table: pa.Table, free: Sequence[str]) -> tuple[str | None, str]:
    named = [name for name in _named(free, *TEXT) if name]
    if named:
        return named[0], "by its name"
    if len(free) == 1:
        return free[0], "the only column of texts"
    if not free:
        return None, ""
    lengths = {name: pc.mean(pc.utf8_length(as_text(table[name]))).as_py() or 0.0 for name in free}
    return max(lengths, key=lambda name: lengths[name]), "the longest texts of several columns"


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as texts, whatever its type."""
    return column.cast(pa.string())
