"""The experiment of data-set distillation: what an arm is given, what is measured, and what is refused."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck.condensation import DistilledSet, Training
from limbeck.data.split import Split, Splits
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.experiment import Arm
from limbeck.experiment.condensation import CondensationExperiment, Task, packed
from limbeck.models.small import MLP

TASKS: list[Task] = []


def blobs(count: int, seed: int) -> Split:
    target = torch.arange(count) % 2
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return Split(noise + 4.0 * target[:, None] - 2, target, torch.arange(count))


def two_points(task: Task) -> DistilledSet:
    TASKS.append(task)
    return DistilledSet.of(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))


class Toy(CondensationExperiment):
    """Two blobs, of which two points tell everything."""

    metric = "accuracy"
    arms = {
        "full": Arm(lambda task: task.train, "all samples", "none"),
        "points": Arm(two_points, "one point each", "method", {"weighted": False}),
        "one-sided": Arm(two_points, "the same, but only one is ever drawn", "control"),
        "turned": Arm(two_points, "tested on turned samples", "control", {"weighted": False}),
    }
    claims = ()

    @cached_property
    def bed(self) -> Any:
        training = Training(steps=40, batch_size=8, optimizer=OptimizerSettings(lr=3e-2))
        return SimpleNamespace(
            splits=lambda seed: Splits(blobs(40, seed), blobs(8, 50), blobs(60, 99)),
            plan=SimpleNamespace(per_class=3),
            num_classes=2,
            training=training,
            network_makers=lambda: {"mlp": lambda: MLP(2, (8,), 2), "linear": lambda: MLP(2, (), 2)},
        )

    def tested(self, arm: str, test: Split) -> Split:
        return Split(-test.input, test.target, test.id) if arm == "turned" else test  # type: ignore[operator]

    def measure(self, arm: str, made: DistilledSet, task: Task) -> dict[str, float]:
        return {"seen": float(len(made))}

    def draw(self, arm: str, made: DistilledSet, task: Task) -> dict[str, str]:
        return {"a set": f"data:,{len(made)}"} if arm == "points" else {}


def test_an_arm_makes_a_set_and_the_networks_learn_from_it_alone() -> None:
    outcomes = {arm: Toy("full").run(arm, 0) for arm in Toy.arms}
    accuracy = {arm: outcome.metrics["accuracy"] for arm, outcome in outcomes.items()}
    assert accuracy["full"] > 0.95
    assert accuracy["points"] > 0.95
    assert accuracy["one-sided"] < 0.85, "weights are obeyed unless the arm says otherwise"
    assert accuracy["turned"] < 0.05, "an arm may see the test samples in its own way"
    found = outcomes["points"].metrics
    assert found["accuracy"] == pytest.approx((found["accuracy_mlp"] + found["accuracy_linear"]) / 2)
    # Two points of two floats, two classes and two float weights; forty points of two floats with a class.
    assert found["set_bytes"] == 2 * 8 + 2 + 2 * 4
    assert found["set_share"] == pytest.approx(26 / (40 * 9))
    assert found["seen"] == found["set_samples"] == 2
    assert outcomes["full"].metrics["set_share"] == 1
    assert outcomes["points"].pictures == {"a set": "data:,2"}
    assert {"distil_seconds", "train_seconds"} <= set(outcomes["points"].cost)


def test_a_distiller_is_given_the_training_samples_and_the_budget() -> None:
    TASKS.clear()
    Toy("full").run("points", 3)
    assert len(TASKS[0].train) == 40
    assert TASKS[0].seed == 3
    assert TASKS[0].budget == round(3 * 2 * packed(blobs(40, 3)).bytes / 40)


def test_options_that_nobody_reads_are_refused() -> None:
    class Wrong(Toy):
        """An arm with a misspelt option."""

        arms = {**Toy.arms, "points": Arm(two_points, "one point each", "method", {"wieghted": False})}

    with pytest.raises(UserError, match="option of arm points: given wieghted"):
        Wrong("full").check()
