"""``py:PACKAGE.MODULE:CALLABLE``: data that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.data.callables import call_reference
from limbeck.data.partition import text_ids
from limbeck.data.references import DataSet, Request
from limbeck.data.split import Split, Splits
from limbeck.errors import UserError

_ALLOWED = "a DataSet, Splits, or a mapping with train and perhaps validation and test"


def read_py(request: Request) -> DataSet:
    """Call the user's function. It gives a :class:`DataSet`, :class:`Splits`, or a mapping of ``train`` and, if there
    are any, ``validation`` and ``test`` to a ``Split``, to ``(input, target)``, or to ``{"input", "target", "id"}``."""
    made = call_reference(request.rest, key=request.key, allow_py=request.allow_py)
    if isinstance(made, DataSet):
        return made if request.task is None else replace(made, task=request.task, task_reason="asked for")
    if isinstance(made, Splits):
        made = {"train": made.train, "validation": made.validation, "test": made.test}
    if not isinstance(made, Mapping) or "train" not in made:
        raise UserError(f"{request.key} {request.reference} returned", type(made).__name__, _ALLOWED)
    wrong = set(made) - {"train", "validation", "test"}
    if wrong:
        raise UserError(f"{request.key} split", sorted(map(str, wrong))[0], ("train", "validation", "test"))
    given = {name: _split(value, name, request) for name, value in made.items()}
    task, reason = _task(given["train"], request.task)
    classes = _classes(given, request) if task == "classification" else None
    splits, notes = request.completed(given, stratify=task == "classification")
    return DataSet(
        splits,
        _modality(given["train"]),
        task,
        reason,
        request.labels if task == "classification" else None,
        classes,
        name=request.rest.rpartition(":")[2],
        fingerprint={"data": fingerprint_text({name: [split.id, split.target] for name, split in given.items()})},
        notes=notes,
    )


def _split(value: Any, name: str, request: Request) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        value = {"input": value[0], "target": value[1]}
    if not isinstance(value, Mapping) or "input" not in value:
        allowed = "a Split, (input, target), or a mapping with input"
        raise UserError(f"{request.key} {name}", type(value).__name__, allowed)
    inputs, target = value["input"], value.get("target")
    target = None if target is None else torch.as_tensor(target)
    if target is not None and target.dtype == torch.float64:
        target = target.float()
    ids = value.get("id")
    return Split(inputs, target, _ids(inputs) if ids is None else torch.as_tensor(ids, dtype=torch.int64))


def _ids(inputs: Any) -> Tensor:
    from limbeck.data.partition import content_id

    if isinstance(inputs, Tensor):
        rows = inputs.detach().cpu().contiguous()
        return torch.tensor([content_id(row.reshape(-1).view(torch.uint8).numpy().tobytes()) for row in rows])
    if isinstance(inputs, Mapping):
        columns = [_ids(value).tolist() for _, value in sorted(inputs.items())]
        return torch.tensor([content_id(repr(row).encode()) for row in zip(*columns)])
    return text_ids(inputs)


def _task(train: Split, asked: str | None) -> tuple[str, str]:
    if asked is not None:
        return asked, "asked for"
    if train.target is None:
        return "embedding", "there are no targets"
    if train.target.is_floating_point():
        return "regression", "the targets are fractional numbers"
    return "classification", "the targets are whole numbers"


def _classes(given: dict[str, Split], request: Request) -> int:
    highest = 0
    for name, split in given.items():
        if split.target is None:
            raise UserError(f"{request.key} {name}", "no targets", "class numbers, for classification")
        if split.target.is_floating_point():
            raise UserError(f"{request.key} {name} targets", str(split.target.dtype), "whole class numbers")
        limit = len(request.labels) if request.labels else None
        low, high = int(split.target.min()), int(split.target.max())
        if low < 0 or (limit is not None and high >= limit):
            raise UserError(
                f"{request.key} {name} targets", low if low < 0 else high, f"0 to {(limit or high + 1) - 1}"
            )
        highest = max(highest, high)
    return len(request.labels) if request.labels else highest + 1


def _modality(train: Split) -> str:
    if isinstance(train.input, (Tensor, Mapping)):
        images = isinstance(train.input, Tensor) and train.input.dtype == torch.uint8 and train.input.dim() == 4
        return "image" if images else "tensor"
    first = train.input[0]
    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    return "image" if isinstance(first, str) and first.lower().endswith(endings) else "text"
