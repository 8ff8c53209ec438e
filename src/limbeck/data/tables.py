"""Tables of texts, labels and numbers, read from files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from limbeck.errors import UserError, first_line

ENDINGS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "arrow": (".arrow",),
}
SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLIT_WORDS |= {"val": "validation", "dev": "validation", "test": "test", "eval": "test"}


@dataclass(frozen=True)
class Sheet:
    """A table by split, with the class names that its files declare."""

    tables: Mapping[str, pa.Table]
    classes: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def whole(self) -> pa.Table:
        """The first table: the others must have its columns."""
        return next(iter(self.tables.values()))


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
    table = csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(strings_can_be_null=False),
    )
    odd = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    if odd:
        raise ValueError(f"column {odd[0]} is not UTF-8")
    return table


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
