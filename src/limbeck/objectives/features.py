"""Objectives on features and embeddings, with projectors where the widths differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.errors import UserError
from limbeck.nn.projectors import projector_for
from limbeck.objectives.base import LossFunction, Needs, Objective, check_options, is_batchwise, row_options
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, dense


class FeatureObjective(Objective):
    """Any loss of a student's feature against a teacher's.

    Args:
        loss: a function of :mod:`limbeck.losses` that takes ``(student_features, teacher_features, **options)``.
        name: the term's name in logs.
        student, teacher: names of the signals, usually taps.
        projector: ``auto`` makes one in :meth:`build` where the shapes differ, ``none`` leaves differing shapes to the
            loss; or a module of your own. It is trained with the student and falls away afterwards.
        per_sample: whether the loss has one value per sample, as batch-wise losses and ``attention_transfer`` have, or
            one per feature vector inside it; found out for batch-wise ones. A mask or weight of samples then counts
            for all their feature vectors; one of tokens is left out where the feature has none.
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
        per_sample: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(projector, str) and projector not in ("auto", "none"):
            raise UserError("projector", projector, ("auto", "none", "a module"))
        check_options(name, loss, options)
        self.loss, self.name, self.options = loss, name, options
        self.projector: nn.Module | None = projector if isinstance(projector, nn.Module) else None
        self._auto = projector == "auto"
        self.batchwise = self.batchwise or is_batchwise(loss)
        self.per_sample = self.batchwise if per_sample is None else per_sample
        self.needs = Needs(student=student, teacher=teacher)

    def build(self, student: Signals, teacher: Signals) -> None:
        ours, theirs = dense(student, self.needs.student[0]), dense(teacher, self.needs.teacher[0])
        if self._auto and self.projector is None and ours.shape != theirs.shape:
            self.projector = projector_for(ours.shape, theirs.shape).to(ours.device, ours.dtype)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = dense(student, self.needs.student[0]), dense(teacher, self.needs.teacher[0])
        if self.projector is not None:
            ours = self.projector(ours)
        if self._auto and ours.shape != theirs.shape:
            raise UserError(
                f"{self.name} shapes",
                f"student {list(ours.shape)}, teacher {list(theirs.shape)}",
                "equal shapes",
                "call distiller.build(batch) before training to insert a projector, or give projector=",
            )
        options = {
            key: self.now(value) if isinstance(value, Schedule) else value for key, value in self.options.items()
        }
        return {self.name: self.loss(ours, theirs, **options, **self._row_options(ours, batch))}

    def _row_options(self, features: Tensor, batch: Batch) -> dict[str, Any]:
        axis = int(self.options.get("axis", -1)) % features.dim()
        rows = features.shape[:1] if self.per_sample else features.shape[:axis] + features.shape[axis + 1 :]
        given = row_options(batch)
        fitted = {key: _fit_rows(key, value, rows) for key, value in given.items() if key != "denominator"}
        if "denominator" in given:
            fitted["denominator"] = given["denominator"]
        return {key: value for key, value in fitted.items() if value is not None}


def _fit_rows(key: str, value: Tensor, rows: torch.Size) -> Tensor | None:
    """A batch's mask or weight in the shape of a feature's rows."""
    if value.dim() > len(rows):
        return None
    if value.shape != rows[: value.dim()]:
        raise UserError(key, f"shape {list(value.shape)}", f"the first axes of the feature's rows, {list(rows)}")
    return value.reshape(*value.shape, *[1] * (len(rows) - value.dim()))


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

    def __init__(self, temperature: float = 0.05, **options: Any) -> None:
        super().__init__(
            losses.similarity_distribution, name="similarity", projector="none", temperature=temperature, **options
        )


class LevelCosine(Objective):
    """1 - cosine at every position of feature maps, level by level: reverse distillation's loss.

        L = sum_l w_l / (h_l w_l) sum_(b, x) (1 - cos(s_l(x), t_l(x))),   w_l = 1 / number of levels by default

    Args:
        levels: names of the maps ``[B, C, h, w]``, the student's and the teacher's alike; one term per level.
        weights: ``w_l`` by name.
        batch: ``sum`` over the samples, as published, or ``mean``. Under ``sum`` a batch of twice the size pulls twice
            as hard: the learning rate of anything but Adam goes with the batch size.
    """

    def __init__(
        self, levels: Iterable[str], *, weights: Mapping[str, float] | None = None, batch: str = "sum"
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        if batch not in ("sum", "mean"):
            raise UserError("batch", batch, ("sum", "mean"))
        self.weights = dict(weights) if weights is not None else dict.fromkeys(self.levels, 1 / len(self.levels))
        if self.weights.keys() != set(self.levels):
            raise UserError("weights", sorted(self.weights), f"one per level, {', '.join(self.levels)}")
        self.batch_mean = batch == "mean"
        self.needs = Needs(student=self.levels, teacher=self.levels)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        given, found = row_options(batch), {}
        for name in self.levels:
            ours, theirs = dense(student, name), dense(teacher, name)
            samples, _, height, width = ours.shape
            rows: dict[str, Any] = {
                key: given[key].view(-1, 1, 1).expand(samples, height, width)
                for key in ("mask", "weight")
                if key in given
            }
            if not self.batch_mean:
                rows["denominator"] = ours.new_tensor(float(height * width))
            elif "denominator" in given:
                rows["denominator"] = given["denominator"] * height * width
            distance = losses.cosine_distance(ours, theirs, axis=1, **rows)
            found[f"cosine_{name}"] = self.weights[name] * distance
        return found
