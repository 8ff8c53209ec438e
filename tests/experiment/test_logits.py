"""The shared experiment of logit systems, on the digits in their smallest size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.experiment import Arm, LogitExperiment
from limbeck.experiment.logits import make_objective
from limbeck.objectives import KL, CrossEntropy, Objective


class Exploding(CrossEntropy):
    def terms(self, *given: Any) -> dict[str, torch.Tensor]:
        return {name: value * torch.inf for name, value in super().terms(*given).items()}


class Digits(LogitExperiment):
    testbed = "digits:few_labels"
    arms = {
        "none": Arm(None, "no teacher", "none"),
        "kd": Arm(lambda: 0.1 * CrossEntropy() + 0.9 * KL(temperature=2.0), "plain", "rival"),
        "shared": Arm(KL(), "an objective that is copied"),
        "shuffled": Arm(KL, "shuffled", "control", {"teacher": "shuffled"}),
        "in_class": Arm(KL, "shuffled in the class", "control", {"teacher": "shuffled_in_class"}),
        "random": Arm(KL, "an untrained teacher", "control", {"teacher": "random"}),
        "exploding": Arm(Exploding, "diverges"),
        "other": Arm(
            KL, "its own recipe", "ablation", {"batch_size": 7, "epochs": 3, "optimizer": OptimizerSettings(lr=0.5)}
        ),
    }


@pytest.fixture(scope="module")
def experiment() -> Digits:
    made = Digits("smoke")
    made.check()
    return made


def test_preparation_says_gate_data_and_reference(experiment: Digits) -> None:
    prepared = experiment.prepare()
    assert set(prepared) == {"gate", "data", "reference"}
    assert all(len(digest) == 64 for digest in prepared["data"].values())
    assert prepared["reference"]["teacher"]["accuracy"] > 0.5
    assert {"name", "value", "bound", "passed"} == set(prepared["gate"]["checks"][0])


def test_an_outcome_has_test_metrics_fidelity_and_a_curve_per_epoch(experiment: Digits) -> None:
    outcome = experiment.run("kd", 0)
    assert {"accuracy", "nll", "ece", "brier", "agreement", "kl"} <= set(outcome.metrics)
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    assert len(outcome.curves["validation_accuracy"]) == experiment.smoke_epochs
    bins = outcome.notes["reliability"]
    assert sum(bins["share"]) == pytest.approx(1, abs=0.01)


def test_a_long_curve_is_thinned_and_ends_with_the_last_epoch(experiment: Digits) -> None:
    def asked(epochs: int) -> list[int]:
        validate = experiment.validator(experiment.splits(0).validation, epochs)
        student = experiment.bed.student(0)
        return [epoch for epoch in range(1, epochs + 1) if validate(student)]

    assert asked(3) == [1, 2, 3]
    assert asked(25) == [1, 4, 7, 10, 13, 16, 19, 22, 25]


def test_a_run_is_a_function_of_arm_and_seed(experiment: Digits) -> None:
    first = experiment.run("kd", 1)
    torch.manual_seed(99)
    experiment.run("none", 0)
    assert experiment.run("kd", 1) == first
    assert Digits("smoke").run("kd", 1) == first
    assert experiment.run("kd", 0).metrics != first.metrics


def test_the_students_of_a_seed_start_alike_and_see_the_same_data(experiment: Digits) -> None:
    states = [experiment.bed.student(3).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_teachers_of_the_controls(experiment: Digits) -> None:
    split = experiment.splits(0).train
    batch = {"id": split.id}
    tables = {
        kind: experiment.teacher_table(kind, 0, split)(batch)["logits"]
        for kind in ("trained", "shuffled", "shuffled_in_class", "shuffled_others", "random")
    }
    trained = tables["trained"]
    assert (trained.argmax(-1) == split.labels).float().mean() > 0.8
    order = trained[:, 0].sort().values
    for kind in ("shuffled", "shuffled_in_class"):
        torch.testing.assert_close(tables[kind][:, 0].sort().values, order)
        assert not (tables[kind] == trained).all(dim=-1).any(), "no sample keeps its own logits"
    assert (tables["shuffled"].argmax(-1) == split.labels).float().mean() < 0.4
    for label in range(10):
        members = split.labels == label
        torch.testing.assert_close(tables["shuffled_in_class"][members].mean(0), trained[members].mean(0))
    label = split.labels[:, None]
    assert torch.equal(tables["shuffled_others"].gather(-1, label), trained.gather(-1, label))
    assert torch.equal(tables["shuffled_others"].sort(-1).values, trained.sort(-1).values)
    assert (tables["shuffled_others"] == trained).float().mean() < 0.4, "the other classes are in another order"
    assert (tables["random"].argmax(-1) == split.labels).float().mean() < 0.4


def test_a_student_that_diverged_is_an_outcome_of_nan(experiment: Digits) -> None:
    outcome = experiment.run("exploding", 0)
    assert {"accuracy", "agreement", "kl"} <= set(outcome.metrics)
    assert all(math.isnan(value) for value in outcome.metrics.values())
    assert outcome.to_json()["diverged"]


def test_recipes_come_from_the_arm_the_experiment_or_the_testbed() -> None:
    experiment = Digits("full")
    epochs, batch_size, optimizer = experiment.recipe({})
    plan = experiment.bed.plan.recipe
    assert (epochs, batch_size, optimizer.lr) == (plan.epochs, plan.batch_size, plan.learning_rate)
    assert experiment.recipe(Digits.arms["other"].options)[:2] == (3, 7)
    assert experiment.recipe(Digits.arms["other"].options)[2].lr == 0.5
    experiment.epochs, experiment.batch_size = 11, 13
    assert experiment.recipe({})[:2] == (11, 13)
    assert Digits("smoke").recipe({})[0] == Digits.smoke_epochs


def test_settings_become_objectives() -> None:
    shared = KL()
    assert isinstance(make_objective(None), CrossEntropy)
    assert isinstance(make_objective(KL), Objective)
    assert make_objective(shared) is not shared
    for wrong in (3, lambda: nn.Linear(2, 2)):
        with pytest.raises(UserError, match="an objective, a function that makes one, or None"):
            make_objective(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teecher": "random"}, "teecher"),
        ({"teacher": "none"}, "trained, shuffled, shuffled_in_class, shuffled_others"),
    ],
)
def test_wrong_arm_options_are_refused(options: dict[str, Any], said: str) -> None:
    wrong = type("Wrong", (Digits,), {"arms": {"a": Arm(KL, "", "method", options)}})
    with pytest.raises(UserError, match=said):
        wrong("smoke").check()
