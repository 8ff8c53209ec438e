"""The experiment of networks that learn together, on the smallest testbed."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from limbeck.data.split import Splits
from limbeck.errors import UserError
from limbeck.experiment import Arm, Outcome
from limbeck.experiment.peers import PeerExperiment
from limbeck.measure import logits_of
from limbeck.objectives import KL, CrossEntropy

ALONE = {"student": None, "teacher": None}
TAUGHT = {"student": lambda: CrossEntropy() + KL(2.0), "teacher": None}
MUTUAL = {"student": TAUGHT["student"], "teacher": TAUGHT["student"]}


class Peers(PeerExperiment):
    testbed = "fashion_mnist:peers"
    traces = ("student/kl",)
    smoke_epochs = 4
    arms = {
        "independent": Arm(ALONE, "alone", "none"),
        "rescaled": Arm(ALONE, "alone, one temperature", "rival", {"rescaled": True}),
        "kd": Arm(TAUGHT, "the finished teacher", "rival", {"offline": True}),
        "dml": Arm(MUTUAL, "mutual", "method"),
        "dml-alternating": Arm(MUTUAL, "mutual, in turns", "ablation", {"update": "alternating", "epochs": 2}),
    }


@cache
def outcome(arm: str) -> Outcome:
    return Peers("smoke").run(arm, 0)


def test_an_arm_is_a_function_of_its_name_and_seed() -> None:
    assert Peers("smoke").run("dml-alternating", 0) == outcome("dml-alternating")
    assert Peers("smoke").run("dml-alternating", 1) != outcome("dml-alternating")


def test_the_offline_teacher_is_the_independent_one_to_the_bit() -> None:
    experiment = Peers("smoke")
    splits: Splits = experiment.splits(0)
    trained = {arm: experiment.train_peers(arm, 0, splits)[0] for arm in ("independent", "kd")}
    teachers = [logits_of(networks["teacher"], splits.test) for networks in trained.values()]
    students = [logits_of(networks["student"], splits.test) for networks in trained.values()]
    assert torch.equal(*teachers)
    assert not torch.equal(*students)


def test_one_temperature_changes_the_confidence_and_nothing_else() -> None:
    plain, rescaled = outcome("independent").metrics, outcome("rescaled").metrics
    assert rescaled["accuracy"] == plain["accuracy"]
    assert rescaled["nll"] == pytest.approx(plain["nll_rescaled"], abs=1e-6)
    assert rescaled["ece"] == pytest.approx(plain["ece_rescaled"], abs=1e-4)
    assert rescaled["fitted_temperature"] == pytest.approx(1, abs=1e-3)
    assert abs(plain["fitted_temperature"] - 1) > 1e-2


def test_learning_together_brings_the_networks_together() -> None:
    assert outcome("dml").metrics["kl"] < outcome("independent").metrics["kl"]
    assert outcome("dml").metrics["agreement"] > outcome("independent").metrics["agreement"]


def test_curves_have_a_value_per_epoch() -> None:
    assert {name: len(series) for name, series in outcome("dml").curves.items()} == {
        "kl": 4,
        "validation_student_accuracy": 4,
        "validation_teacher_accuracy": 4,
    }
    assert [len(series) for series in outcome("kd").curves.values()] == [4, 4]
    reliability = outcome("dml").notes["reliability"]
    assert sum(reliability["share"]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm(None, "no mapping"), "setting of arm wrong"),
        (Arm({"student": None}, "one network"), "an objective for each of student, teacher"),
        (Arm(ALONE, "unknown update", options={"update": "random"}), "update of arm wrong: given random"),
        (Arm(ALONE, "unknown option", options={"teacher": "random"}), "option of arm wrong: given teacher"),
    ],
)
def test_wrong_arms_are_refused(arm: Arm, message: str) -> None:
    class Wrong(Peers):
        arms = {"wrong": arm}

    with pytest.raises(UserError, match=message):
        Wrong("smoke").check()
