"""Objectives on features and embeddings, with projectors where the widths differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck import losses
from limbeck.errors import UserError
from limbeck.nn.projectors import projector_for
from limbeck.objectives.base import LossFunction, Needs, Objective, row_options
from limbeck.signals import Batch, Signals


class FeatureObjective(Objective):
    """Any loss of a student's feature against a teacher's.

    Args:
        loss: a function of :mod:`limbeck.losses` that takes ``(student_features, teacher_features, **options)``.
        name: the term's name in logs.
        student, teacher: names of the signals, usually taps.
        projector: ``auto`` makes one in :meth:`build` where the shapes differ, ``none`` never; or a module of your
            own. It is trained with the student and falls away afterwards.
        options: keyword arguments of the loss.
    """

    def __init__(
        self,
        loss: LossFunction,
        *,
        name: str,
        student: str = "embedding",
        teacher: str = "embedding",
        projector: str | nn.Module = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(projector, str) and projector not in ("auto", "none"):
            raise UserError("projector", projector, ("auto", "none", "a module"))
        self.loss, self.name, self.options = loss, name, options
        self.projector: nn.Module | None = projector if isinstance(projector, nn.Module) else None
        self._auto = projector == "auto"
        self.needs = Needs(student=student, teacher=teacher)

    def build(self, student: Signals, teacher: Signals) -> None:
        ours, theirs = student[self.needs.student[0]], teacher[self.needs.teacher[0]]
        if self._auto and self.projector is None and isinstance(theirs, Tensor) and ours.shape != theirs.shape:
            self.projector = projector_for(ours.shape, theirs.shape).to(ours.device)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student[self.needs.student[0]], teacher[self.needs.teacher[0]]
        if self.projector is not None:
            ours = self.projector(ours)
        if ours.shape != theirs.shape:
            raise UserError(
                f"{self.name} shapes",
                f"student {list(ours.shape)}, teacher {list(theirs.shape)}",
                "equal shapes",
                "call distiller.build(batch) before training to insert a projector, or give projector=",
            )
        rows = row_options(batch)
        # Samples may be masked or weighed as a whole while a feature has rows inside each sample.
        rows = {key: value for key, value in rows.items() if key == "denominator" or value.shape == ours.shape[:-1]}
        return {self.name: self.loss(ours, theirs, **self.options, **rows)}


class Cosine(FeatureObjective):
    """1 - cosine similarity: the direction counts, not the length (sentence embeddings)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(losses.cosine_distance, name="cosine", **options)


class FeatureMSE(FeatureObjective):
    """Mean squared error between features (FitNets; Romero et al., 2015)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(losses.mse, name="feature_mse", **options)


class SimilarityDistribution(FeatureObjective):
    """KL between the rows of the batch's similarity matrices, teacher's and student's; needs no projector."""

    batchwise = True

    def __init__(self, temperature: float = 0.05, **options: Any) -> None:
        super().__init__(
            losses.similarity_distribution, name="similarity", projector="none", temperature=temperature, **options
        )

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student[self.needs.student[0]], teacher[self.needs.teacher[0]]
        return {self.name: self.loss(ours, theirs, **self.options, **row_options(batch))}
