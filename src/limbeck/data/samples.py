"""From a table to a data set: targets checked, samples numbered by their content, splits cut."""

from __future__ import annotations

import math
from typing import Any, cast

import pyarrow as pa
import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.data.chats import Chat, find_chats, read_chats, routed
from limbeck.data.columns import Columns, as_text, choose_columns, is_text
from limbeck.data.image_check import checked_images
from limbeck.data.partition import text_ids
from limbeck.data.references import DataSet, Pairs, Request
from limbeck.data.split import Input, Split, Splits
from limbeck.data.tables import Sheet, read_sheet
from limbeck.data.targets import read_targets
from limbeck.errors import UserError

#: Whole numbers with more different values than this, and more than half as many as rows, are quantities.
MANY = 100


def read_file(request: Request, kind: str) -> DataSet:
    """``parquet:``, ``csv:`` and ``jsonl:``."""
    return from_sheet(read_sheet(request.path, kind, request.key), request)


def from_sheet(sheet: Sheet, request: Request) -> DataSet:
    """A data set of a table whose columns are chosen here."""
    for split, table in sheet.tables.items():
        if table.num_rows == 0:
            raise UserError(request.key, f"{request.reference}, {split} without rows", "at least one row")
    asked = dict(request.columns or {})
    chats = find_chats(sheet.whole, asked) if request.task in (None, "causal-lm") else {}
    # Lists of messages can be nothing else; columns of texts may be, so these have to be asked for.
    if "messages" in chats or "prompt" in asked or (chats and request.task == "causal-lm"):
        return _of_language(sheet, chats, request)
    route = asked.pop("teacher", None) if request.task == "causal-lm" else None
    columns = choose_columns(sheet, request.task, asked, request.key)
    if route is not None:
        return _of_language(sheet, {"text": cast(str, columns.text), "teacher": route}, request)
    task, reason = _task(sheet, columns, request.task)
    notes = list(columns.notes)
    targets = None
    if task in ("classification", "regression"):
        if columns.label is None:
            hint = "name the column with columns={'label': ...}"
            raise UserError(f"{request.key} columns", ", ".join(sheet.whole.column_names), f"targets for {task}", hint)
        targets = read_targets(sheet, columns.label, task, request.labels, request.key)
        notes += targets.notes
    given: dict[str, Split] = {}
    for name, table in sheet.tables.items():
        target = targets.values[name] if targets is not None else None
        given[name], dropped = _split(table, columns, target, request, name)
        notes += dropped
    if columns.text_pair is not None and task in ("embedding", "features"):
        return _of_pairs(given, request, task, reason, notes)
    splits, cut = request.completed(given, stratify=task == "classification")
    return DataSet(
        splits,
        "image" if columns.image else "text",
        task,
        reason,
        targets.labels if targets else None,
        targets.num_classes if targets else None,
        name=request.path.stem,
        fingerprint={"data": _fingerprint(given)},
        notes=notes + cut,
    )


def _task(sheet: Sheet, columns: Columns, asked: str | None) -> tuple[str, str]:
    if asked is not None:
        return asked, "asked for"
    if columns.label is None:
        return "embedding", "there is no column of targets"
    if columns.label in sheet.classes:
        return "classification", f"column {columns.label} declares its class names"
    column = sheet.whole[columns.label]
    kind, distinct = column.type, len(column.unique())
    if is_text(kind) or pa.types.is_boolean(kind):
        return "classification", f"column {columns.label} holds names ({distinct} different ones)"
    if pa.types.is_integer(kind):
        if distinct > MANY and 2 * distinct > len(column):
            return "regression", f"column {columns.label} holds {distinct} different numbers"
        return "classification", f"column {columns.label} holds {distinct} different whole numbers"
    values = [value for value in column.unique().to_pylist() if value is not None and math.isfinite(value)]
    if values and len(values) <= 20 and all(float(value).is_integer() for value in values):
        return "classification", f"column {columns.label} holds {len(values)} different whole numbers"
    return "regression", f"column {columns.label} holds fractional numbers"


def _of_language(sheet: Sheet, columns: dict[str, str], request: Request) -> DataSet:
    """Conversations, prompts with completions, or texts with the name of their teacher."""
    given: dict[str, Split] = {}
    shown = " and ".join(columns[role] for role in ("messages", "prompt", "completion", "text") if role in columns)
    notes = [f"column{'s' if ' and ' in shown else ''} {shown} read as {'texts' if 'text' in columns else 'turns'}"]
    if "teacher" in columns:
        if columns["teacher"] not in sheet.whole.column_names:
            raise UserError("columns.teacher", columns["teacher"], sheet.whole.column_names)
        notes.append(f"column {columns['teacher']} names every sample's teacher")
    for name, table in sheet.tables.items():
        if "text" in columns:
            chats = routed(as_text(table[columns["text"]]).to_pylist(), table, columns["teacher"])
        else:
            chats = read_chats(table, columns, f"{request.key} {name}")
        kept = [chat for chat in chats if str(chat).strip()]
        if len(kept) < len(chats):
            notes.append(f"{len(chats) - len(kept)} {name} rows without text left out")
        if not kept:
            raise UserError(f"{request.key} column", shown, f"at least one text among the {name} rows")
        given[name] = Split(kept, None, text_ids(_key(chat) for chat in kept))
    splits, cut = request.completed(given, stratify=False)
    return DataSet(
        splits, "text", "causal-lm", "asked for" if request.task else f"column {shown} holds conversations",
        name=request.path.stem, fingerprint={"data": _fingerprint(given)}, notes=notes + cut,
    )  # fmt: skip


def _key(chat: Chat) -> tuple[str, ...]:
    # One text of two teachers is two samples.
    return (*chat.key, chat.teacher) if chat.teacher else chat.key


def _split(
    table: pa.Table, columns: Columns, target: Tensor | None, request: Request, name: str
) -> tuple[Split, list[str]]:
    if columns.image:
        return _images(table, columns.image, target, request, name)
    texts = as_text(table[cast(str, columns.text)]).to_pylist()
    rows: list[Any] = texts
    if columns.text_pair is not None:
        rows = list(zip(texts, as_text(table[columns.text_pair]).to_pylist()))
    filled = [place for place, row in enumerate(rows) if _filled(row)]
    notes = [f"{len(rows) - len(filled)} {name} rows without text left out"] if len(filled) < len(rows) else []
    if not filled:
        raise UserError(f"{request.key} column", str(columns.text), f"at least one text among the {name} rows")
    kept = [rows[place] for place in filled]
    return Split(kept, None if target is None else target[filled], text_ids(kept)), notes


def _filled(row: Any) -> bool:
    parts = row if isinstance(row, tuple) else (row,)
    return all(part is not None and part.strip() for part in parts)


def _images(
    table: pa.Table, column: str, target: Tensor | None, request: Request, name: str
) -> tuple[Split, list[str]]:
    cells = table[column].to_pylist()
    images = [cell if isinstance(cell, bytes) or cell is None else cell["bytes"] for cell in cells]
    empty = sum(image is None for image in images)
    if empty:
        hint = "images that are only named by a path do not travel with the table; use folder:"
        raise UserError(
            f"{request.key} column", column, f"the bytes of every image, {empty} {name} rows have none", hint
        )
    labels = [f"{name} row {place}" for place in range(len(images))]
    good, ids, notes = checked_images(cast("list[bytes]", images), labels, request)
    chosen = torch.tensor(good, dtype=torch.int64)
    split = Split(cast(Input, [images[place] for place in good]), None if target is None else target[chosen], ids)
    return split, notes


def _of_pairs(given: dict[str, Split], request: Request, task: str, reason: str, notes: list[str]) -> DataSet:
    """Pairs of texts are split as pairs; a network sees both texts of a pair as samples of their own."""
    splits, cut = request.completed(given, stratify=False)
    pairs = {name: _two(getattr(splits, name).input) for name in ("train", "validation", "test")}
    apart = Splits(*(_singles(pairs[name]) for name in ("train", "validation", "test")))
    return DataSet(
        apart,
        "text",
        task,
        reason,
        name=request.path.stem,
        fingerprint={"data": _fingerprint(given)},
        notes=[*notes, *cut, "each text of a pair is a sample; held-out pairs serve a retrieval test"],
        pairs=pairs,
    )


def _two(pairs: Any) -> Pairs:
    return [query for query, _ in pairs], [document for _, document in pairs]


def _singles(pairs: Pairs) -> Split:
    texts = list(dict.fromkeys([*pairs[0], *pairs[1]]))
    return Split(texts, None, text_ids(texts))


def _fingerprint(given: dict[str, Split]) -> str:
    # The ids are hashes of the inputs.
    return fingerprint_text({name: [split.id, split.target] for name, split in given.items()})
