"""Objectives on logits: each a thin name over a pure loss of :mod:`limbeck.losses`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives.base import LossFunction, Needs, Objective, check_options, is_batchwise, row_options
from limbeck.objectives.heads import chunked
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, dense, dense_or_sparse


class LogitObjective(Objective):
    """Any loss of student logits against teacher logits.

    Where the student's logits are not multiplied out (:class:`~limbeck.signals.HeadLogits`) and the teacher's are not
    or are sparse, a divergence is worked out a chunk of rows at a time: memory is flat in the vocabulary's size.

    Args:
        loss: a function of :mod:`limbeck.losses` that takes ``(student_logits, teacher_logits, **options)``.
        name: the term's name in logs.
        with_target: pass the batch's labels as ``target`` too.
        student, teacher: names of the signals.
        options: keyword arguments of the loss; numbers may be schedules.
    """

    def __init__(
        self,
        loss: LossFunction,
        *,
        name: str,
        with_target: bool = False,
        student: str = "logits",
        teacher: str = "logits",
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(name, loss, options)
        self.loss, self.name, self.options = loss, name, options
        self.batchwise = is_batchwise(loss)
        self.needs = Needs(student=student, teacher=teacher, target=with_target)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        options = {k: self.now(v) if isinstance(v, Schedule) else v for k, v in self.options.items()}
        found = chunked(self.loss, student[self.needs.student[0]], teacher[self.needs.teacher[0]], options, batch)
        if found is not None:
            return {self.name: found}
        ours, theirs = dense(student, self.needs.student[0]), dense_or_sparse(teacher, self.needs.teacher[0])
        if isinstance(theirs, Tensor) and ours.shape != theirs.shape:
            raise UserError(
                f"{self.name} shapes",
                f"student {list(ours.shape)}, teacher {list(theirs.shape)}",
                "equal shapes",
                "student and teacher must share one label space, class for class",
            )
        if self.needs.target:
            options["target"] = batch["target"]
        return {self.name: self.loss(ours, theirs, **options, **row_options(batch))}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options.items())


class KL(LogitObjective):
    """KL(teacher || student) at a temperature, times its square (Hinton et al., 2015).

    ``per_row="mean"`` is the historical reduction: also divided by the number of classes.
    """

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        scale: str = "squared",
        per_row: str = "sum",
        **names: Any,
    ) -> None:
        super().__init__(losses.forward_kl, name="kl", temperature=temperature, scale=scale, per_row=per_row, **names)


class ReverseKL(LogitObjective):
    """KL(student || teacher): the student commits to the teacher's modes."""

    def __init__(self, temperature: float | Schedule = 1.0, *, scale: str = "squared", **names: Any) -> None:
        super().__init__(losses.reverse_kl, name="reverse_kl", temperature=temperature, scale=scale, **names)


class JensenShannon(LogitObjective):
    """Generalised Jensen-Shannon divergence with weight ``beta`` (0.5: symmetric)."""

    def __init__(
        self, beta: float = 0.5, temperature: float | Schedule = 1.0, *, scale: str = "squared", **names: Any
    ) -> None:
        super().__init__(
            losses.jensen_shannon, name="jensen_shannon", beta=beta, temperature=temperature, scale=scale, **names
        )


class ProbabilityMSE(LogitObjective):
    """Squared difference of the two networks' probabilities, by default the mean over batch and classes."""

    def __init__(self, temperature: float | Schedule = 1.0, *, per_row: str = "mean", **names: Any) -> None:
        super().__init__(
            losses.probability_mse, name="probability_mse", temperature=temperature, per_row=per_row, **names
        )


class DKD(LogitObjective):
    """Decoupled knowledge distillation (Zhao et al., 2022): target and non-target parts weighed apart."""

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float | Schedule = 4.0, **names: Any
    ) -> None:
        super().__init__(
            losses.decoupled_kd, name="dkd", with_target=True, alpha=alpha, beta=beta, temperature=temperature, **names
        )


class DIST(LogitObjective):
    """DIST (Huang et al., 2022): Pearson correlation between and within classes; the batch counts as a whole."""

    def __init__(
        self,
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        temperature: float | Schedule = 4.0,
        **names: Any,
    ) -> None:
        super().__init__(
            losses.dist,
            name="dist",
            inter_weight=inter_weight,
            intra_weight=intra_weight,
            temperature=temperature,
            **names,
        )
