"""The columns of a table understood: which holds the texts or images, and which the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from limbeck.data.chats import ROLES as CHAT_ROLES
from limbeck.data.tables import Sheet
from limbeck.errors import UserError

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
class Columns:
    """Which column plays which part, and why."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    image: str | None = None
    notes: tuple[str, ...] = ()


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
            raise UserError("columns", role, (*ROLES, *CHAT_ROLES))
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
