"""Targets of a table: class numbers with their names, or numbers, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from limbeck.data.columns import is_text
from limbeck.data.tables import Sheet
from limbeck.errors import UserError, first_line


@dataclass(frozen=True)
class Targets:
    """Targets by split.

    Attributes:
        values: int64 class numbers or float32 numbers ``[N]``.
        labels: class names in order, if there are any.
        num_classes: how many classes; None for numbers.
    """

    values: dict[str, Tensor]
    labels: list[str] | None = None
    num_classes: int | None = None
    notes: list[str] = field(default_factory=list)


def read_targets(sheet: Sheet, column: str, task: str, labels: Sequence[str] | None, key: str = "data") -> Targets:
    """The targets in ``column`` for ``task``; see :class:`Targets`.

    Raises:
        UserError: targets are missing, not numbers, NaN, infinite, out of range, unknown, or all the same class.
    """
    tables = {name: table[column].combine_chunks() for name, table in sheet.tables.items()}
    for name, values in tables.items():
        if values.null_count:
            rows = [row for row, value in enumerate(values.is_null().to_pylist()) if value][:5]
            raise UserError(
                f"{key} column {column}", f"{values.null_count} missing targets in {name}, first rows {rows}",
                "a target in every row", "leave out or fill these rows",
            )  # fmt: skip
    if task == "regression":
        return Targets({name: _numbers(values, column, name, key) for name, values in tables.items()})
    made = _classes(tables, column, labels, sheet.classes.get(column), key)
    if (made.num_classes or 0) < 2:
        raise UserError(f"{key} column {column}", "one class only", "at least two classes")
    return made


def _numbers(values: pa.Array, column: str, name: str, key: str) -> Tensor:
    if is_text(values.type):
        try:
            values = values.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{key} column {column}", first_line(error), "numbers, for regression") from error
    elif not (
        pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_decimal(values.type)
    ):
        raise UserError(f"{key} column {column}", str(values.type), "numbers, for regression")
    numbers = torch.tensor(values.cast(pa.float64(), safe=False).to_pylist(), dtype=torch.float64).float()
    bad = (~torch.isfinite(numbers)).nonzero().flatten().tolist()
    if bad:
        given = f"{len(bad)} NaN or infinite targets in {name}, first rows {bad[:5]}"
        raise UserError(f"{key} column {column}", given, "finite numbers")
    return numbers


def _classes(
    tables: dict[str, pa.Array],
    column: str,
    asked: Sequence[str] | None,
    declared: list[str] | None,
    key: str,
) -> Targets:
    where = f"{key} column {column}"
    distinct = pa.chunked_array([values.cast(_plain(values.type)) for values in tables.values()]).unique()
    kind = distinct.type
    if pa.types.is_floating(kind):
        values = distinct.to_pylist()
        if not all(float(value).is_integer() for value in values):
            hint = "pass task='regression' for numbers"
            raise UserError(
                where,
                next(value for value in values if not float(value).is_integer()),
                "class names or whole numbers",
                hint,
            )
        distinct, kind = distinct.cast(pa.int64()), pa.int64()
        tables = {name: values.cast(pa.int64()) for name, values in tables.items()}
    names = list(asked or declared or ())
    if pa.types.is_integer(kind):
        return _numbered(tables, [int(value) for value in distinct.to_pylist()], names, where)
    found = sorted(_name(value) for value in distinct.to_pylist())
    names = names or found
    unknown = [name for name in found if name not in names]
    if unknown:
        raise UserError(where, unknown[0], names, "the class names given with labels= are all there are")
    values = {
        name: _positions([_name(v) for v in column_values.to_pylist()], names) for name, column_values in tables.items()
    }
    return Targets(values, names, len(names), [f"{len(names)} classes: {_few(names)}", *_unused(names, found)])


def _numbered(tables: dict[str, pa.Array], distinct: list[int], names: list[str], where: str) -> Targets:
    """Whole numbers: class numbers when they are 0 ... k-1 or names are known, else names that happen to be digits."""
    low, high = min(distinct), max(distinct)
    if names:
        if low < 0 or high >= len(names):
            # Names that are numbers themselves (stars 1 ... 5) are looked up by name.
            if {str(value) for value in distinct} <= set(names):
                return Targets(_by_name(tables, names), names, len(names), [])
            raise UserError(where, low if low < 0 else high, f"class numbers 0 to {len(names) - 1} for {_few(names)}")
        return Targets(_integers(tables), names, len(names), _unused(names, [names[value] for value in distinct]))
    if low < 0:
        raise UserError(
            where,
            low,
            "class numbers from 0, or names",
            "-1 often marks samples without a label: leave them out",
        )
    if low == 0 and high == len(distinct) - 1:
        return Targets(_integers(tables), None, len(distinct), [f"{len(distinct)} classes, numbered from 0"])
    names = [str(value) for value in sorted(distinct)]
    note = f"the numbers in the label column are not 0 to {len(distinct) - 1}: read as the class names {_few(names)}"
    return Targets(_by_name(tables, names), names, len(names), [note])


def _plain(kind: pa.DataType) -> pa.DataType:
    if is_text(kind):
        return pa.string()
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_boolean(kind):
        return kind
    raise UserError("label column", str(kind), "texts, whole numbers or truth values")


def _integers(tables: dict[str, pa.Array]) -> dict[str, Tensor]:
    return {
        name: torch.tensor(pc.cast(values, pa.int64()).to_pylist(), dtype=torch.int64)
        for name, values in tables.items()
    }


def _by_name(tables: dict[str, pa.Array], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: _positions([str(value) for value in values.to_pylist()], names) for name, values in tables.items()}


def _positions(values: Sequence[str], names: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64)


def _name(value: str | bool) -> str:
    return str(value)


def _unused(names: Sequence[str], found: Sequence[str]) -> list[str]:
    missing = [name for name in names if name not in set(found)]
    return [f"no sample of the classes {_few(missing)}"] if missing else []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" ... ({len(names)})" if len(names) > 6 else "")
