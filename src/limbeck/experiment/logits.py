"""The experiment that logit-distillation systems share: one student, one teacher, an objective per arm."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.experiment.base import Experiment, Outcome
from limbeck.measure.calibration import reliability
from limbeck.measure.fidelity import agreement, kl
from limbeck.measure.outputs import logits_of
from limbeck.measure.quality import classification
from limbeck.objectives import CrossEntropy, Objective
from limbeck.sources import Table
from limbeck.testbeds import Testbed, load

TEACHERS = ("trained", "shuffled", "shuffled_in_class", "shuffled_others", "random")


class LogitExperiment(Experiment):
    """Train the testbed's student on labels and teacher logits; an arm's ``setting`` is its objective.

    A subclass states ``testbed``, ``arms`` and ``claims``, and where it departs from the testbed's own
    recipe ``epochs``, ``batch_size`` and ``optimizer``. The setting of an arm is a function that makes an
    objective (or an objective, which is copied), and ``None`` for cross-entropy on the labels alone. Arm
    options are ``epochs``, ``batch_size``, ``optimizer`` and
    ``teacher``, which makes controls:

    * ``trained``: the testbed's teacher;
    * ``shuffled``: its logits of another sample, so that only the pool of outputs is left;
    * ``shuffled_in_class``: those of another sample with the same label, so that only the class means are
      left;
    * ``shuffled_others``: its own, but those of the classes other than the label in random order, so that only
      its confidence in the label is left;
    * ``random``: a teacher that was never trained.

    Images are not augmented, so the teacher's logits are a table made once. The last epoch counts: nothing
    is selected.
    Metrics on the test split: those of classification, ``agreement`` and ``kl`` (KL(teacher || student)) with
    the trained teacher. A student whose outputs are no longer finite has diverged, and all its metrics are
    NaN.
    """

    testbed = "digits:few_labels"
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: OptimizerSettings | None = None
    smoke_epochs = 2
    curve_points = 10
    options: tuple[str, ...] = ("teacher", "epochs", "batch_size", "optimizer")

    def check(self) -> None:
        super().check()
        for name, arm in self.arms.items():
            if (teacher := arm.options.get("teacher", "trained")) not in TEACHERS:
                raise UserError(f"teacher of arm {name}", teacher, TEACHERS)

    def prepare(self) -> dict[str, Any]:
        test = self.splits(0).test
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"teacher": self.bed.evaluate(self.teacher, test)},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        splits = self.splits(seed)
        student, curves = self.train(arm, seed, splits)
        metrics, notes = self.assess(student, splits.test)
        return Outcome(metrics, curves, notes=notes)

    def train(self, arm: str, seed: int, splits: Splits) -> tuple[nn.Module, dict[str, list[float]]]:
        """One student trained as the arm says, and its curves. Systems that train otherwise override this."""
        chosen = self.arms[arm]
        objective = make_objective(chosen.setting)
        table = (
            self.teacher_table(chosen.options.get("teacher", "trained"), seed, splits.train)
            if objective.needs.teacher
            else None
        )
        epochs, batch_size, optimizer = self.recipe(chosen.options)
        distiller = Distiller(self.bed.student(seed), objective, table, optimizer=optimizer)
        loader = TensorLoader(splits.train, min(batch_size, len(splits.train)), seed=seed)
        history = fit(
            distiller,
            loader,
            epochs=epochs,
            seed=seed,
            validate=self.validator(splits.validation, epochs),
            # A student that diverges is an outcome too.
            stop_when_diverged=False,
            accelerator="cpu",
        )
        names = [name for name in history.names() if name.startswith("validation")]
        return distiller.finish(), {name.replace("/", "_"): history.curve(name)["y"] for name in names}

    def recipe(self, options: Mapping[str, Any]) -> tuple[int, int, OptimizerSettings]:
        """Epochs, batch size and optimiser of an arm: its own, else the experiment's, else the testbed's."""
        plan = getattr(getattr(self.bed, "plan", None), "recipe", None)
        epochs = options.get("epochs", self.epochs) or getattr(plan, "epochs", 20)
        batch_size = options.get("batch_size", self.batch_size) or getattr(plan, "batch_size", 64)
        settings = options.get("optimizer", self.optimizer) or OptimizerSettings(warmup=0.05)
        if plan is not None and options.get("optimizer", self.optimizer) is None:
            settings = replace(settings, lr=plan.learning_rate, weight_decay=plan.weight_decay)
        return (min(epochs, self.smoke_epochs) if self.size == "smoke" else epochs), batch_size, settings

    def assess(self, student: nn.Module, split: Split) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics and notes of a trained student on ``split``."""
        ours, theirs = logits_of(student, split), self.teacher_logits(split)
        if not bool(torch.isfinite(ours).all()):
            names = [*classification(theirs, split.labels), "agreement", "kl"]
            return dict.fromkeys(names, float("nan")), {}
        metrics = classification(ours, split.labels) | {"agreement": agreement(theirs, ours), "kl": kl(theirs, ours)}
        return metrics, {"reliability": drawn_reliability(ours, split.labels)}

    def validator(self, split: Split, epochs: int = 1) -> Callable[[nn.Module], dict[str, float]]:
        """Validation accuracy for the learning curve: at some ``curve_points`` of the epochs, the last among them."""
        left, every = itertools.count(epochs - 1, -1), math.ceil(epochs / self.curve_points)

        def validate(distiller: nn.Module) -> dict[str, float]:
            if next(left) % every:
                return {}
            student: Any = getattr(distiller, "student", distiller)
            correct = logits_of(student, split).argmax(dim=-1) == split.labels
            return {"accuracy": float(correct.double().mean())}

        return validate

    @cached_property
    def bed(self) -> Testbed:
        """The testbed, loaded once per process."""
        return load(self.testbed, "smoke" if self.size == "smoke" else "full")

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained teacher."""
        return self.bed.teacher()

    def splits(self, seed: int) -> Splits:
        """The testbed's splits; the latest seed's are kept, since the arms of a seed follow one another."""
        if getattr(self, "_splits", (None,))[0] != seed:
            self._splits = (seed, self.bed.splits(seed))
        return self._splits[1]

    def teacher_logits(self, split: Split) -> Tensor:
        """The trained teacher's logits on ``split``, made once per process."""
        samples = split.id.numpy().tobytes()
        if samples not in self._said:
            self._said[samples] = logits_of(self.teacher, split)
        return self._said[samples]

    @cached_property
    def _said(self) -> dict[bytes, Tensor]:
        return {}

    def teacher_table(self, kind: str, seed: int, split: Split) -> Table:
        """The logits of a teacher (see the class) on ``split``, by sample id."""
        logits = self.teacher_logits(split)
        generator = torch.Generator().manual_seed(seed)
        if kind == "random":
            logits = logits_of(self._untrained_teacher(seed), split)
        elif kind == "shuffled":
            logits = logits[_other(torch.arange(len(split)), generator)]
        elif kind == "shuffled_in_class":
            source = torch.arange(len(split))
            for label in range(self.bed.num_classes):
                members = (split.labels == label).nonzero().squeeze(-1)
                source[members] = _other(members, generator) if len(members) else members
            logits = logits[source]
        elif kind == "shuffled_others":
            order = torch.rand(logits.shape, generator=generator).scatter(-1, split.labels[:, None], -1.0).argsort(-1)
            others = logits.scatter(-1, split.labels[:, None], -torch.inf).argsort(-1)[:, 1:]
            logits = logits.scatter(-1, order[:, 1:], logits.gather(-1, others))
        return Table(split.id, {"logits": logits})

    def _untrained_teacher(self, seed: int) -> nn.Module:
        """The teacher's architecture with fresh weights."""
        make = getattr(self.bed, "teacher_network", None)
        if make is None:
            raise UserError(
                "teacher", "random", TEACHERS[:-1], f"the testbed {self.testbed} gives no untrained teacher"
            )
        network: nn.Module = make(seed)
        return network


def make_objective(setting: Any) -> Objective:
    """The objective of an arm's setting: made by a function, copied, or cross-entropy for None."""
    if setting is None:
        return CrossEntropy()
    objective = (
        copy.deepcopy(setting) if isinstance(setting, Objective) else setting() if callable(setting) else setting
    )
    if not isinstance(objective, Objective):
        raise UserError("arm setting", type(objective).__name__, "an objective, a function that makes one, or None")
    return objective


def drawn_reliability(logits: Tensor, target: Tensor) -> dict[str, list[float]]:
    """The reliability diagram as the report draws it, for ``notes["reliability"]``."""
    bins = reliability(logits, target)
    return {
        "confidence": [round(one.confidence, 4) for one in bins],
        "accuracy": [round(one.accuracy, 4) for one in bins],
        "share": [round(one.count / len(target), 4) for one in bins],
    }


def _other(members: Tensor, generator: torch.Generator) -> Tensor:
    """For every member another one of them (a random cycle, so that no sample keeps its own)."""
    order = members[torch.randperm(len(members), generator=generator)]
    following = torch.empty(int(members.max()) + 1, dtype=torch.int64)
    following[order] = order.roll(-1)
    return following[members]
