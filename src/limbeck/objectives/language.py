"""Objectives on next-token distributions that a plain loss does not make: learned windows, spans, a second text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.nn.quantile_bounds import QuantileBounds
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.objectives.heads import label_cross_entropy
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, SparseLogits, dense, dense_or_sparse

#: (tokens ``[B, A]``, mask ``[B, A]``, views ``[B]`` or None) -> number of every token's span, -1 for none.
Spans = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class ClippedKL(Objective):
    """KL over the part of the teacher's distribution that a window keeps; see :func:`limbeck.losses.clipped_kl`.

    Args:
        bounds: a network that gives ``(lower, upper)`` per position from sorted log-probabilities, trained with the
            student (:class:`~limbeck.nn.quantile_bounds.QuantileBounds` if None), or two fixed numbers.
        k: classes that are looked at.
        softness: of the window's edges; only soft ones can be learned.
        floor, floor_weight: a learned window must keep this much of the teacher's mass on average per position, by a
            hinge. Nothing else keeps it from shrinking to one class, since every window that leaves out what the
            student has wrong lowers the KL.
        label: keep the batch's ``target`` too.

    Logs ``kept_mass`` and ``kept_classes``.
    """

    def __init__(
        self,
        bounds: QuantileBounds | tuple[float, float] | None = None,
        *,
        k: int = 512,
        softness: float = 0.02,
        floor: float = 0.5,
        floor_weight: float = 1.0,
        label: bool = True,
    ) -> None:
        super().__init__()
        self.fixed = bounds if isinstance(bounds, tuple) else None
        self.bounds = None if isinstance(bounds, tuple) else bounds or QuantileBounds()
        if self.bounds is not None and not softness > 0:
            raise UserError("softness", softness, "a positive number: hard edges cannot be learned")
        self.k, self.softness, self.label = k, softness, label
        self.floor, self.floor_weight = floor, floor_weight
        self.needs = Needs(student="logits", teacher="logits", target=label)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits, mask = dense(student, "logits"), batch.get("mask")
        taught = dense_or_sparse(teacher, "logits")
        check_vocabulary(logits, taught)
        ranked = losses.ranked_classes(taught, self.k, label=batch["target"] if self.label else None, mask=mask)
        lower: Tensor | float
        upper: Tensor | float
        lower, upper = self.fixed or (0.0, 1.0)
        if self.bounds is not None:
            # Constants for the bounds: the student is not to learn to move its own window.
            theirs = logits.detach().float().log_softmax(dim=-1).gather(-1, ranked.indices)
            if mask is not None:
                theirs = torch.where(mask.unsqueeze(-1), theirs, 0.0)
            lower, upper = self.bounds(ranked.log_probs, theirs)
        kept = losses.window(ranked, lower, upper, self.softness)
        mass = losses.kept_mass(ranked, kept)
        options = row_options(batch)
        found = {"clipped_kl": losses.windowed_kl(logits, ranked, kept, **options)}
        if self.bounds is not None and self.floor_weight:
            short = (self.floor - mass).clamp_min(0)
            found["floor"] = self.floor_weight * losses.reduce_rows(short, **options)
        with torch.no_grad():
            means = {"kept_mass": mass, "kept_classes": kept.exp().sum(dim=-1)}
            self.observe(**{name: losses.reduce_rows(value, mask=mask) for name, value in means.items()})
        return found


class SpanProduct(Objective):
    """Products of neighbouring distributions agree inside spans; see :func:`limbeck.losses.span_product`.

    Args:
        spans: which tokens belong together, such as :class:`limbeck.language.FunctionWordSpans`.
        k: of the support.
    """

    def __init__(self, spans: Spans, *, k: int | None = 32) -> None:
        super().__init__()
        self.spans, self.k = spans, k
        self.needs = Needs(student="logits", teacher="logits", target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits, target = dense(student, "logits"), batch["target"]
        theirs = dense_or_sparse(teacher, "logits")
        check_vocabulary(logits, theirs)
        if logits.shape[-2] < 2:
            return {"span": logits.sum() * 0.0}
        mask = batch.get("mask")
        mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
        numbers = self.spans(target, mask, batch.get("draws"))
        pairs = same_span(numbers) & mask[:, 1:] & mask[:, :-1]
        return {"span": losses.span_product(logits, theirs, k=self.k, mask=pairs)}


class DataCrossEntropy(Objective):
    """Cross-entropy on the data's own answers, while other terms look at a text that somebody else wrote.

    The student's pass over the data is the signal ``data_logits``, and the batch holds ``data`` with ``target`` and
    ``mask`` (:class:`limbeck.language.SequenceDistiller` sees to both).
    """

    needs = Needs(student="data_logits")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        if "data" not in batch:
            raise UserError("batch", sorted(batch), "a batch with data: use SequenceDistiller")
        data = batch["data"]
        return {"data": label_cross_entropy(student, "data_logits", data["target"], mask=data["mask"])}


class SelectedKL(Objective):
    """KL(teacher || student) at the tokens that both networks read, wherever these stand in the one and the other.

    Both give ``logits`` and ``counted``, the mask of those tokens
    (:func:`~limbeck.language.full_context_logits`); see :func:`limbeck.losses.selected_tokens`. Mean over the tokens of
    the batch. The temperature's square is no factor here.
    """

    needs = Needs(student=("logits", "counted"), teacher=("logits", "counted"))

    def __init__(self, temperature: float | Schedule = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits, wanted = dense(student, "logits"), dense_or_sparse(teacher, "logits")
        check_vocabulary(logits, wanted)
        ours, theirs = losses.selected_tokens(logits, dense(student, "counted"), wanted, dense(teacher, "counted"))
        return {"kl": losses.forward_kl(ours, theirs, temperature=self.now(self.temperature), scale="none")}


def same_span(numbers: Tensor) -> Tensor:
    """``[B, A - 1]``: whether tokens i and i + 1 belong to one span, from the spans' numbers ``[B, A]``."""
    return (numbers[:, 1:] == numbers[:, :-1]) & (numbers[:, 1:] >= 0)


def check_vocabulary(student: Tensor, teacher: Tensor | SparseLogits) -> None:
    """Refuse a teacher of another vocabulary: its token 17 is another word."""
    theirs = teacher.size if isinstance(teacher, SparseLogits) else teacher.shape[-1]
    if theirs != student.shape[-1]:
        raise UserError(
            "teacher's vocabulary", f"{theirs} tokens", f"the student's, {student.shape[-1]}",
            "both must use one tokenizer",
        )  # fmt: skip
