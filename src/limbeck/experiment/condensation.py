"""The experiment of data-set distillation: a small set per arm, fresh networks of several kinds trained on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from limbeck.condensation.evaluation import Training, averaged, evaluate
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split, Splits
from limbeck.experiment.base import Experiment, Outcome
from limbeck.testbeds import Gate, load

METRICS = ("accuracy", "auc")


class CondensationTestbed(Protocol):
    """What a testbed of this experiment offers beyond the usual."""

    @property
    def training(self) -> Training: ...
    @property
    def num_classes(self) -> int: ...
    def network_makers(self) -> Mapping[str, Callable[[], nn.Module]]: ...
    def splits(self, seed: int = 0) -> Splits: ...
    def gate(self) -> Gate: ...
    def data_hashes(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Task:
    """What a distiller is given: never a held-out sample.

    Attributes:
        train: the training samples.
        budget: most bytes of the distilled set.
        seed: of whatever it draws.
        bed: the testbed, for its networks.
        full: whether this is the recorded size, and not the tests' one.
        metrics, curves: where a distiller may put what it alone knows; they become the outcome's.
    """

    train: Split
    budget: int
    seed: int
    bed: Any
    full: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)


class CondensationExperiment(Experiment):
    """Every arm makes a distilled set from the training samples; the testbed's networks learn from it alone.

    A subclass states ``testbed``, ``arms`` and ``claims``. The setting of an arm is a function from a :class:`Task` to
    a :class:`DistilledSet` (or to a split, for an arm that keeps all samples). Arm options: ``weighted``, draw samples
    by the set's weights, as is the default; ``longer``, so many times the usual steps, for an arm with so much data
    that it would be stopped short; ``augmented``, whether it uses the testbed's augmentation, which slows learning from
    much data. All others take as many steps with batches of the same size, and the last step counts: nothing is
    selected. ``repeats`` says how many fresh networks of a kind are averaged.

    Metrics: ``accuracy`` and ``auc`` as means over the networks and of each (``accuracy_gin``); ``set_bytes``,
    ``set_samples``, and ``set_share``, the set's bytes by those of all training samples. A subclass adds its own in
    :meth:`measure`. Cost: ``distil_seconds`` and ``train_seconds`` (processor time).
    """

    title = "A small set instead of all data"
    options: tuple[str, ...] = ("weighted", "longer", "augmented")
    repeats: Mapping[str, int] = {}

    def prepare(self) -> dict[str, Any]:
        return {"gate": self.bed.gate().as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    def budget(self, train: Split) -> int:
        """Most bytes of a distilled set: as much as ``plan.per_class`` average training samples of every class."""
        per_sample: float = self.pack(train).bytes / len(train)
        samples: float = self.bed.plan.per_class * self.bed.num_classes
        return round(samples * per_sample)

    def run(self, arm: str, seed: int) -> Outcome:
        splits, chosen = self.bed.splits(seed), self.arms[arm]
        task = Task(splits.train, self.budget(splits.train), seed, self.bed, self.size == "full")
        start = time.process_time()
        made = chosen.setting(task)
        distilled = time.process_time()
        training: Training = self.bed.training
        training = replace(training, steps=training.steps * chosen.options.get("longer", 1))
        if not chosen.options.get("augmented", True):
            training = replace(training, transform=None)
        found = evaluate(
            self.bed.network_makers(),
            made,
            self.tested(arm, splits.test),
            training,
            weighted=chosen.options.get("weighted", True),
            seed=seed,
            repeats=self.repeats if self.size == "full" else None,
        )
        cost = {"distil_seconds": distilled - start, "train_seconds": time.process_time() - distilled}
        whole, kept = self.pack(splits.train), made if isinstance(made, DistilledSet) else self.pack(made)
        sizes = {"set_bytes": kept.bytes, "set_samples": len(kept), "set_share": kept.bytes / whole.bytes}
        metrics = averaged(found, METRICS) | sizes | task.metrics | self.measure(arm, kept, task)
        rounded = {name: round(value, 3) for name, value in cost.items()}
        return Outcome(metrics, task.curves, rounded, pictures=self.draw(arm, kept, task))

    def pack(self, split: Split) -> DistilledSet:
        """Real samples in the form, and so with the bytes, of a distilled set."""
        return packed(split)

    def tested(self, arm: str, test: Split) -> Split:
        """The test samples as the networks of an arm get to see them."""
        return test

    def measure(self, arm: str, made: DistilledSet, task: Task) -> dict[str, float]:
        """Further metrics of a set."""
        return {}

    def draw(self, arm: str, made: DistilledSet, task: Task) -> dict[str, str]:
        """Pictures of a set, by caption; for the first seed of a few arms."""
        return {}

    @cached_property
    def bed(self) -> Any:
        """The testbed, loaded once per process; a :class:`CondensationTestbed`."""
        return load(self.testbed, "smoke" if self.size == "smoke" else "full")


def packed(split: Split) -> DistilledSet:
    """Real samples in the form, and so with the bytes, of a distilled set."""
    return DistilledSet.of(split.input, split.labels)
