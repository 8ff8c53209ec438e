"""Losses on logits that are not multiplied out: the bridge from objectives to the chunked vocabulary losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from limbeck import losses
from limbeck.losses.vocabulary import DIVERGENCES
from limbeck.objectives.base import row_options
from limbeck.signals import Batch, HeadLogits, Signals, SparseLogits, dense


def label_cross_entropy(student: Signals, name: str, target: Tensor, **options: Any) -> Tensor:
    """Cross-entropy of the student's signal ``name``: by chunks of rows if it is not multiplied out."""
    ours = student[name]
    if not isinstance(ours, HeadLogits):
        return losses.cross_entropy(dense(student, name), target, **options)
    finish = None if ours.scale == 1 and ours.cap is None else ours.finish
    return losses.linear_cross_entropy(ours.hidden, ours.weight, target, bias=ours.bias, finish=finish, **options)


def chunked(
    loss: Callable[..., Tensor], student: object, teacher: object, options: Mapping[str, Any], batch: Batch
) -> Tensor | None:
    """``loss(student, teacher)`` by chunks of rows, where both forms and the loss allow it; else None."""
    if loss not in DIVERGENCES.values() or not isinstance(student, HeadLogits):
        return None
    rows: dict[str, Any] = {"student_bias": student.bias, **row_options(batch)}
    rows |= {key: value for key, value in options.items() if key == "reduction"}
    options = {key: value for key, value in options.items() if key != "reduction"}
    if isinstance(teacher, SparseLogits):

        def against_sparse(ours: Tensor, theirs: SparseLogits) -> Tensor:
            return loss(student.finish(ours), theirs, **options, reduction="none")

        sparse: Callable[..., Tensor] = against_sparse
        return losses.linear_sparse_divergence(student.hidden, student.weight, teacher, divergence=sparse, **rows)
    if isinstance(teacher, HeadLogits):

        def compare(ours: Tensor, theirs: Tensor) -> Tensor:
            return loss(student.finish(ours), teacher.finish(theirs), **options, reduction="none")

        return losses.linear_divergence(
            student.hidden, student.weight, teacher.hidden, teacher.weight,
            teacher_bias=teacher.bias, divergence=compare, **rows,
        )  # fmt: skip
    if isinstance(teacher, Tensor) and teacher.shape == student.shape:

        def against_whole(ours: Tensor, theirs: Tensor) -> Tensor:
            return loss(student.finish(ours), theirs, **options, reduction="none")

        return losses.linear_divergence(student.hidden, student.weight, teacher, None, divergence=against_whole, **rows)
    return None
