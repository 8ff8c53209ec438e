"""``hf:DIR``: folders of the ``datasets`` library and snapshots of hub data sets, read without that library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from limbeck.data.references import DataSet, Request, with_notes
from limbeck.data.samples import from_sheet
from limbeck.data.tables import (
    ENDINGS,
    SPLIT_WORDS,
    Sheet,
    feature_classes,
    near_files,
    read_sheet,
    read_table,
)
from limbeck.errors import UserError


def read_hf(request: Request) -> DataSet:
    """Open what ``save_to_disk`` wrote, or a folder of parquet, JSONL or CSV files as the hub keeps them."""
    root = request.path
    if not root.is_dir():
        root = _cached(request)
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return from_sheet(_saved(root, request), request)
    for kind in ("parquet", "jsonl", "csv"):
        if any(
            file for ending in ENDINGS[kind] for file in root.rglob(f"*{ending}") if file.name != "dataset_info.json"
        ):
            return with_notes(from_sheet(read_sheet(root, kind, request.key), request), [f"read from its {kind} files"])
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    allowed = "a folder written by datasets.save_to_disk, or one with parquet, JSONL or CSV files"
    raise UserError(request.key, request.reference, allowed, f"it holds {inside}")


def _cached(request: Request) -> Path:
    """The snapshot of a hub data set that is on this machine already."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(request.rest, repo_type="dataset", local_files_only=True))
    except Exception as error:
        near = near_files(request.path, ("/",))
        hint = "no such folder, and no data set of this name in the local hub cache"
        raise UserError(request.key, request.reference, near, hint) from error


def _saved(root: Path, request: Request) -> Sheet:
    folders = {"train": root}
    if (root / "dataset_dict.json").is_file():
        names = [str(name) for name in _json(root / "dataset_dict.json", request)["splits"]]
        folders = {SPLIT_WORDS[name]: root / name for name in names if name in SPLIT_WORDS}
        if "train" not in folders:
            raise UserError(
                request.key, f"{request.reference} with the splits {', '.join(names)}", "a split named train"
            )
    tables, classes = {}, {}
    for split, folder in folders.items():
        state = _json(folder / "state.json", request)
        files = [folder / entry["filename"] for entry in state["_data_files"]]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(request.key, str(folder), f"all files that state.json names; {missing[0]} is missing")
        read = [read_table(file, "arrow", request.key) for file in files]
        if not read:
            raise UserError(f"{request.key} {split}", "no rows", "at least one row")
        tables[split] = pa.concat_tables(read)
        if (folder / "dataset_info.json").is_file():
            classes.update(feature_classes(_json(folder / "dataset_info.json", request).get("features", {})))
    return Sheet(tables, classes)


def _json(path: Path, request: Request) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(request.key, str(path), "a readable JSON file", str(error)) from error
