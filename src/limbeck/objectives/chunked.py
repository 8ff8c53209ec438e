"""Objectives on next tokens from hidden states and heads, so that nobody's logits of all rows exist at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from limbeck import losses
from limbeck.objectives.base import Needs, Objective, Scaled, Sum, row_options
from limbeck.objectives.logits import LogitObjective
from limbeck.objectives.supervised import CrossEntropy
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, SparseLogits, dense

#: Weight ``[V, W]`` and bias ``[V]`` of a linear head, asked for when they are used.
Head = Callable[[], tuple[Tensor, Tensor | None]]
HIDDEN, WEIGHT, BIAS = "hidden", "head_weight", "head_bias"


def chunked(objective: Objective, *, bias: bool = False, teacher_head: Head | None = None) -> Objective | None:
    """The same objective from the student's ``hidden`` ``[..., W]``, ``head_weight`` and ``head_bias``.

    The values and gradients are those of ``objective`` on the logits, to rounding; see
    :mod:`limbeck.losses.vocabulary`.

    Args:
        bias: whether the student's head has one.
        teacher_head: the teacher's, which then gives ``hidden`` too; None for a teacher that gives ``logits``, whole or
            the largest of them.

    Returns:
        None where a part of the objective compares more than the logits of one position, or changes with them.
    """
    if isinstance(objective, Sum):
        parts = [chunked(part, bias=bias, teacher_head=teacher_head) for part in objective._objectives()]
        return None if any(part is None for part in parts) else Sum([part for part in parts if part is not None])
    if isinstance(objective, Scaled):
        inner = chunked(objective.part, bias=bias, teacher_head=teacher_head)
        return None if inner is None else Scaled(inner, objective.weight)
    if isinstance(objective, CrossEntropy) and objective.needs.student == ("logits",):
        return ChunkedCrossEntropy(objective, bias)
    usual = Needs(student="logits", teacher="logits")
    if isinstance(objective, LogitObjective) and objective.needs == usual and not objective.batchwise:
        return ChunkedDivergence(objective, bias, teacher_head)
    return None


class ChunkedCrossEntropy(Objective):
    """:class:`CrossEntropy` of a linear head."""

    def __init__(self, whole: CrossEntropy, bias: bool = False) -> None:
        super().__init__()
        self.label_smoothing = whole.label_smoothing
        self.needs = Needs(student=_student(bias), target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        hidden, weight, bias = _head(student)
        value = losses.linear_cross_entropy(
            hidden, weight, batch["target"], bias=bias, label_smoothing=self.label_smoothing, **row_options(batch)
        )
        return {"cross_entropy": value}


class ChunkedDivergence(Objective):
    """A :class:`LogitObjective` of two linear heads, or of one against a teacher's logits."""

    def __init__(self, whole: LogitObjective, bias: bool = False, teacher_head: Head | None = None) -> None:
        super().__init__()
        self.loss, self.name, self.options, self.teacher_head = whole.loss, whole.name, whole.options, teacher_head
        self.needs = Needs(student=_student(bias), teacher="logits" if teacher_head is None else HIDDEN)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        hidden, weight, bias = _head(student)
        options = {key: self.now(value) if isinstance(value, Schedule) else value for key, value in self.options.items()}
        compare = functools.partial(self.loss, reduction="none", **options)
        rows = row_options(batch)
        theirs = teacher[self.needs.teacher[0]]
        if isinstance(theirs, SparseLogits):
            value = losses.linear_sparse_divergence(
                hidden, weight, theirs, student_bias=bias, divergence=compare, **rows
            )
        else:
            head, its_bias = (None, None) if self.teacher_head is None else self.teacher_head()
            head = None if head is None else head.to(theirs.device, theirs.dtype)
            its_bias = None if its_bias is None else its_bias.to(theirs.device, theirs.dtype)
            value = losses.linear_divergence(
                hidden, weight, theirs, head, student_bias=bias, teacher_bias=its_bias, divergence=compare, **rows
            )
        return {self.name: value}


def _student(bias: bool) -> tuple[str, ...]:
    return (HIDDEN, WEIGHT, BIAS) if bias else (HIDDEN, WEIGHT)


def _head(student: Signals) -> tuple[Tensor, Tensor, Tensor | None]:
    return dense(student, HIDDEN), dense(student, WEIGHT), dense(student, BIAS) if BIAS in student else None
