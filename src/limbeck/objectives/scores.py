"""Objectives on one score per sample, with a teacher's score as the target: sentence pairs, query and document."""

from __future__ import annotations

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.signals import Batch, Signals, dense

#: What becomes of a target in front of a loss that wants [0, 1].
RANGES = {
    "clip": lambda target: target.clamp(0.0, 1.0),
    "map": lambda target: (target + 1.0) / 2.0,
    "raw": lambda target: target,
}


class ScoreObjective(Objective):
    """The student's score per sample ``[B]`` against the teacher's ``[B]``.

    Args:
        student, teacher: names of the signals.
        target_range: of the teacher's score, where it is a cosine in [-1, 1]: ``clip`` to [0, 1], ``map`` by
            (y + 1) / 2, or ``raw`` as it is.
    """

    name = "score"
    student = "score"

    def __init__(self, *, student: str | None = None, teacher: str = "score", target_range: str = "raw") -> None:
        super().__init__()
        if target_range not in RANGES:
            raise UserError("target_range", target_range, RANGES)
        self.target_range = target_range
        self.needs = Needs(student=student or self.student, teacher=teacher)

    def scores(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """The student's score and its target, ``[B]`` each; a last axis of one is dropped."""
        ours, theirs = dense(student, self.needs.student[0]), dense(teacher, self.needs.teacher[0])
        ours, theirs = (one.squeeze(-1) if one.dim() == 2 else one for one in (ours, theirs))
        return ours, RANGES[self.target_range](theirs)


class ScoreBCE(ScoreObjective):
    """Binary cross-entropy of a logit with a soft target; cosines are clipped to [0, 1] unless told otherwise."""

    student = "logits"

    def __init__(self, *, student: str | None = None, teacher: str = "score", target_range: str = "clip") -> None:
        super().__init__(student=student, teacher=teacher, target_range=target_range)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = self.scores(student, teacher)
        return {"score_bce": losses.soft_bce(ours, theirs, **row_options(batch))}


class ScoreMSE(ScoreObjective):
    """Squared error of a score in the scale of its target."""

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = self.scores(student, teacher)
        return {"score_mse": losses.score_mse(ours, theirs, **row_options(batch))}
