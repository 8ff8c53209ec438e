"""Objectives: what a student is trained to do, as parts that add and scale."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.reduce import full_precision, split_over
from limbeck.nn.gather import gather_rows, row_counts, sum_over_processes, world_size
from limbeck.schedules import Schedule, at
from limbeck.signals import TOLD, Batch, HeadLogits, Signals, SparseLogits, detach, pick


@dataclass(frozen=True, init=False)
class Needs:
    """Names of the signals that an objective reads, and whether it reads the batch's ``target``."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    target: bool

    def __init__(
        self, student: str | Iterable[str] = (), teacher: str | Iterable[str] = (), *, target: bool = False
    ) -> None:
        object.__setattr__(self, "student", _names(student))
        object.__setattr__(self, "teacher", _names(teacher))
        object.__setattr__(self, "target", target)

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            dict.fromkeys((*self.student, *other.student)),
            dict.fromkeys((*self.teacher, *other.teacher)),
            target=self.target or other.target,
        )


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


class Objective(nn.Module):
    """Compares student signals with teacher signals and targets.

    A subclass sets ``needs`` and writes :meth:`terms`, which returns named scalars; their sum is the loss. The
    gradient into the teacher is stopped unless ``stop_teacher_gradient`` is False. Samples that a teacher says nothing
    about (its signal ``told``) are masked, in terms without a teacher too, so that all terms have the same ones.

    Under several processes the values and gradients are those of the global batch. A term that depends on pairs of
    samples sets ``batchwise``, and its rows are gathered first; then ``batch_rows`` says what of a batch has a row per
    sample, besides the signals, and ``tables`` which signals have not. For any other term the losses of
    :mod:`limbeck.losses` count the rows of all processes; a mean of your own would be one over this process.
    """

    needs: Needs = Needs()
    batchwise: bool = False
    stop_teacher_gradient: bool = True
    batch_rows: tuple[str, ...] = ("id", "target", "mask", "weight", "view")
    tables: tuple[str, ...] = ("class_vectors",)

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0
        self._observed: dict[str, Tensor] = {}

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Named scalars of one batch."""
        raise UserError("objective", type(self).__name__, "a subclass that defines terms()")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Check what is needed, stop the teacher's gradient, gather where the batch counts as a whole."""
        student, batch = pick(student, self.needs.student, "student"), _counting(batch, teacher)
        teacher = pick(teacher, self.needs.teacher, "teacher")
        if self.needs.target and "target" not in batch:
            raise UserError(
                "batch", sorted(batch), "a batch with a target", f"{type(self).__name__} compares with labels"
            )
        if self.stop_teacher_gradient:
            teacher = detach(teacher)
        if world_size() == 1:
            return self.terms(student, teacher, batch)
        if not self.batchwise:
            with split_over(world_size(), sum_over_processes):
                return self.terms(student, teacher, batch)
        counts = row_counts(*_rows_and_device(student, batch))
        rows = {key: batch[key] for key in self.batch_rows if key in batch}
        student, teacher, rows = gather_rows((student, teacher, rows), counts, tables=self.tables)
        return self.terms(student, teacher, {**_without(batch, {"input", "denominator"}), **rows})

    def build(self, student: Signals, teacher: Signals) -> None:
        """Make what depends on shapes (projectors), from the signals of one dry forward."""

    def set_progress(self, progress: float) -> None:
        """Tell every part how far training is, from 0 to 1; schedules read it."""
        for module in self.modules():
            if isinstance(module, Objective):
                module.progress = progress

    def observe(self, **values: Tensor) -> None:
        """Note numbers of the latest batch for the log (a gate's share, a gap); they are no part of the loss."""
        self._observed = {name: value.detach() for name, value in values.items()}

    def observed(self) -> dict[str, Tensor]:
        """What this objective and its parts noted of the latest batch."""
        parts = (module for module in self.modules() if isinstance(module, Objective))
        return {name: value for part in parts for name, value in part._observed.items()}

    def now(self, value: float | Schedule) -> float:
        """The present value of a number or schedule."""
        return at(value, self.progress)

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum([*_parts(self), *_parts(other)])

    def __mul__(self, weight: float | Schedule) -> Objective:
        if not isinstance(weight, (Real, Schedule)):
            return NotImplemented
        return Scaled(self, weight if isinstance(weight, Schedule) else float(weight))

    __rmul__ = __mul__

    def __radd__(self, other: object) -> Objective:
        """``sum([a, b])`` begins with 0."""
        return self if other == 0 and isinstance(other, int) else NotImplemented


def _rows_and_device(student: Signals, batch: Batch) -> tuple[int, torch.device]:
    values = [_rows(value) for value in student.values()]
    first = next((value for value in [*values, batch.get("id")] if isinstance(value, Tensor) and value.dim()), None)
    if first is None:
        raise UserError("student signals", sorted(student), "one with a row per sample")
    return len(first), first.device


def _rows(value: Tensor | SparseLogits | HeadLogits) -> Tensor:
    if isinstance(value, HeadLogits):
        return value.hidden
    return value.values if isinstance(value, SparseLogits) else value


def _counting(batch: Batch, teacher: Signals) -> Batch:
    """The batch, its mask without the samples that the teacher says nothing about."""
    told = teacher.get(TOLD)
    if not isinstance(told, Tensor):
        return batch
    mask = batch["mask"] if "mask" in batch else torch.ones_like(batch["target"], dtype=torch.bool)
    return {**batch, "mask": mask & told.view(-1, *[1] * (mask.dim() - 1))}


def _without(batch: Batch, keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key not in keys}


class Scaled(Objective):
    """An objective times a number or schedule."""

    def __init__(self, part: Objective, weight: float | Schedule) -> None:
        super().__init__()
        self.part, self.weight = part, weight
        self.needs = part.needs

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        weight = self.now(self.weight)
        return {name: weight * value for name, value in self.part(student, teacher, batch).items()}

    def build(self, student: Signals, teacher: Signals) -> None:
        self.part.build(student, teacher)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class Sum(Objective):
    """Several objectives at once; terms of one name are told apart by a number."""

    def __init__(self, parts: Iterable[Objective]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.needs = Needs()
        for part in self._objectives():
            self.needs = self.needs | part.needs

    def _objectives(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for part in self._objectives():
            for name, value in part(student, teacher, batch).items():
                terms[_free(name, terms)] = value
        return terms

    def build(self, student: Signals, teacher: Signals) -> None:
        for part in self._objectives():
            part.build(student, teacher)


def _parts(objective: Objective) -> list[Objective]:
    return objective._objectives() if isinstance(objective, Sum) else [objective]


def _free(name: str, taken: dict[str, Tensor]) -> str:
    return (
        name
        if name not in taken
        else next(f"{name}_{n}" for n in range(2, len(taken) + 3) if f"{name}_{n}" not in taken)
    )


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of all terms."""
    if not terms:
        raise UserError("objective", "no terms", "at least one named scalar")
    for name, value in terms.items():
        if value.dim():
            raise UserError(f"term {name}", f"shape {list(value.shape)}", "a scalar; choose the reduction mean or sum")
    return torch.stack([full_precision(value) for value in terms.values()]).sum()


def row_options(batch: Batch) -> dict[str, Any]:
    """``mask``, ``weight`` and ``denominator`` of a batch, as the keyword arguments that every loss takes.

    A ``denominator`` is the number of rows of the whole batch, over all processes and micro-batches.
    """
    return {key: batch[key] for key in ("mask", "weight", "denominator") if batch.get(key) is not None}


LossFunction = Callable[..., Tensor]


def is_batchwise(loss: LossFunction) -> bool:
    """Whether a loss of :mod:`limbeck.losses` compares the rows of a batch with each other, as its docstring says."""
    return "Batch-wise: yes" in (loss.__doc__ or "")


def check_options(name: str, loss: LossFunction, options: Iterable[str]) -> None:
    """Refuse an option that the loss does not take, when the objective is made and not at its first batch."""
    parameters = list(inspect.signature(loss).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    # The first two are the student's signal and the teacher's.
    allowed = [parameter.name for parameter in parameters[2:]]
    for option in options:
        if option not in allowed:
            raise UserError(f"{name} option", option, allowed)
