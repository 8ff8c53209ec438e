"""Objectives on logits: each a thin name over a pure loss of :mod:`limbeck.losses`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives.base import LossFunction, Needs, Objective, check_options, is_batchwise, row_options
from limbeck.objectives.heads import chunked
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, SparseLogits, dense, dense_or_sparse

SAMPLED = ("k1", "k3")
ESTIMATORS = ("full", "topk", *SAMPLED)


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
        self.check_shapes(ours, theirs)
        if self.needs.target:
            options["target"] = batch["target"]
        return {self.name: self.loss(ours, theirs, **options, **row_options(batch))}

    def check_shapes(self, ours: Tensor, theirs: Tensor | SparseLogits) -> None:
        """Refuse a teacher of another label space."""
        if isinstance(theirs, Tensor) and ours.shape != theirs.shape:
            raise UserError(
                f"{self.name} shapes",
                f"student {list(ours.shape)}, teacher {list(theirs.shape)}",
                "equal shapes",
                "student and teacher must share one label space, class for class",
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options.items())


class Divergence(LogitObjective):
    """A divergence by one of several estimators, under one name.

    Args:
        full: the divergence of ``(student_logits, teacher_logits)``.
        sampled: the same of ``(student_log_probs, teacher_log_probs)`` of single tokens.
        text_of: whose text the sampled estimator is right on, ``student`` or ``teacher``.
        estimator: what of the teacher is looked at.

            - ``full``: all that the teacher gives. Exact for dense logits; sparse ones are ``topk``.
            - ``topk``: its ``k`` most probable classes with the exact rest as one more outcome. At temperature 1 never
              more than the whole divergence (it cannot see differences inside the rest), zero where that is, and no
              truncated sum: a k without the rest is not offered.
            - ``k1``, ``k3``: the batch's ``target`` alone. Unbiased in value and gradient on text that ``text_of``
              wrote at the same temperature without a top-p cut, with the variance of one sample; meaningless on other
              text, which :class:`~limbeck.language.SequenceDistiller` refuses where it knows. The teacher's signal
              may also be the log-probabilities of the targets ``[...]``: ``teacher="log_probs"``. See
              :mod:`limbeck.losses.sampled`.
        k: of ``topk``.
    """

    def __init__(
        self,
        full: LossFunction,
        sampled: LossFunction,
        *,
        text_of: str,
        estimator: str = "full",
        k: int | None = None,
        sampled_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if estimator not in ESTIMATORS:
            raise UserError("estimator", estimator, ESTIMATORS)
        if (k is None) == (estimator == "topk"):
            raise UserError("k", k, "a number of classes" if estimator == "topk" else "None, unless estimator='topk'")
        super().__init__(full, with_target=estimator in SAMPLED, **options)
        self.estimator, self.k, self.sampled = estimator, k, sampled
        self.sampled_options = sampled_options or {}
        self.text_of = text_of if estimator in SAMPLED else None

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        if self.estimator in SAMPLED:
            return {self.name: self._of_tokens(student, teacher, batch)}
        if self.k is not None:
            name = self.needs.teacher[0]
            teacher = {name: losses.keep_top(dense_or_sparse(teacher, name), self.k)}
        return super().terms(student, teacher, batch)

    @property
    def temperatures(self) -> tuple[float, float]:
        """The present temperatures of student and teacher."""
        student = self.now(self.options.get("temperature", 1.0))
        teacher = self.options.get("teacher_temperature")
        return student, student if teacher is None else self.now(teacher)

    def _of_tokens(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        ours, theirs = dense(student, self.needs.student[0]), dense_or_sparse(teacher, self.needs.teacher[0])
        target, options = batch["target"], row_options(batch)
        mine, other = self.temperatures
        if isinstance(theirs, SparseLogits):
            raise UserError(
                f"{self.name} estimator", f"{self.estimator} with a top-k teacher", "estimator='full'",
                "a token that was not kept has no log-probability; cache the targets' own, as log_probs",
            )  # fmt: skip
        if theirs.shape == target.shape:
            if other != 1:
                raise UserError(
                    f"{self.name} temperature", other, "1, where only log-probabilities of tokens are known"
                )
        else:
            self.check_shapes(ours, theirs)
            theirs = losses.token_log_probs(theirs, target, temperature=other, mask=options.get("mask"))
        log_probs = losses.token_log_probs(ours, target, temperature=mine, mask=options.get("mask"))
        value = self.sampled(log_probs, theirs, form=self.estimator, **self.sampled_options, **options)
        return value * mine**2 if self.options.get("scale") == "squared" else value

    def extra_repr(self) -> str:
        shown = {"estimator": self.estimator, "k": self.k, **self.sampled_options}
        return ", ".join([super().extra_repr(), *(f"{key}={value}" for key, value in shown.items() if value)])


class KL(Divergence):
    """KL(teacher || student) at a temperature, times its square (Hinton et al., 2015).

    ``per_row="mean"`` is the historical reduction: also divided by the number of classes. ``estimator``, ``k``: see
    :class:`Divergence`; ``k1`` and ``k3`` need text that the teacher wrote.
    """

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        scale: str = "squared",
        per_row: str = "sum",
        estimator: str = "full",
        k: int | None = None,
        **names: Any,
    ) -> None:
        if per_row != "sum" and estimator in SAMPLED:
            raise UserError("per_row", per_row, f"sum, for estimator={estimator!r}")
        super().__init__(
            losses.forward_kl, losses.sampled_forward_kl, text_of="teacher", estimator=estimator, k=k, name="kl",
            temperature=temperature, scale=scale, per_row=per_row, **names,
        )  # fmt: skip


class ReverseKL(Divergence):
    """KL(student || teacher): the student commits to the teacher's modes.

    ``estimator``, ``k``: see :class:`Divergence`; ``k1`` and ``k3`` need text that the student writes, and their
    gradient is the score-function one (differentiating the values would train nothing, or the forward KL).
    """

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        scale: str = "squared",
        estimator: str = "full",
        k: int | None = None,
        **names: Any,
    ) -> None:
        super().__init__(
            losses.reverse_kl, losses.sampled_reverse_kl, text_of="student", estimator=estimator, k=k,
            name="reverse_kl", temperature=temperature, scale=scale, **names,
        )  # fmt: skip


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence with weight ``beta`` (0.5: symmetric).

    ``estimator``, ``k``: see :class:`Divergence`; ``k1`` and ``k3``, which are the same here, need text that
    ``samples`` (student or teacher) wrote.
    """

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float | Schedule = 1.0,
        *,
        scale: str = "squared",
        estimator: str = "full",
        k: int | None = None,
        samples: str = "student",
        **names: Any,
    ) -> None:
        if samples not in ("student", "teacher"):
            raise UserError("samples", samples, ("student", "teacher"))
        sampled_options = {"beta": beta, "samples": samples} if estimator in SAMPLED else None
        super().__init__(
            losses.jensen_shannon, losses.sampled_jensen_shannon, text_of=samples, estimator=estimator, k=k,
            sampled_options=sampled_options, name="jensen_shannon", beta=beta, temperature=temperature, scale=scale,
            **names,
        )  # fmt: skip


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
