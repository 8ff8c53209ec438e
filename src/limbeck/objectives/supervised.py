"""Objectives that compare with labels, not with a teacher."""

from __future__ import annotations

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.objectives.heads import label_cross_entropy
from limbeck.signals import Batch, Signals, dense


class CrossEntropy(Objective):
    """Cross-entropy with the labels; see :func:`limbeck.losses.cross_entropy`.

    Logits that are not multiplied out (:class:`~limbeck.signals.HeadLogits`) never exist whole.
    """

    def __init__(self, *, label_smoothing: float = 0.0, student: str = "logits") -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.needs = Needs(student=student, target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        options = {"label_smoothing": self.label_smoothing, **row_options(batch)}
        return {"cross_entropy": label_cross_entropy(student, self.needs.student[0], batch["target"], **options)}


class Brier(Objective):
    """Squared difference of the probabilities from the labels, by default the mean over batch and classes."""

    def __init__(self, *, per_row: str = "mean", student: str = "logits") -> None:
        super().__init__()
        self.per_row = per_row
        self.needs = Needs(student=student, target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits = dense(student, self.needs.student[0])
        return {"brier": losses.brier(logits, batch["target"], per_row=self.per_row, **row_options(batch))}


class TargetMSE(Objective):
    """Mean squared error with numeric targets, for regression."""

    def __init__(self, *, student: str = "logits") -> None:
        super().__init__()
        self.needs = Needs(student=student, target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        prediction = dense(student, self.needs.student[0])
        target = batch["target"]
        if target.numel() != prediction.numel() or len(target) != len(prediction):
            raise UserError("target", f"shape {list(target.shape)}", f"the prediction's, {list(prediction.shape)}")
        # A row is a sample, also where a sample is one number.
        prediction = prediction.unsqueeze(-1) if prediction.dim() == 1 else prediction
        target = target.to(prediction.dtype).reshape(prediction.shape)
        return {"target_mse": losses.mse(prediction, target, **row_options(batch))}
