"""Experiments as data, and their references."""

from __future__ import annotations

import json

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.experiment import Arm, Claim, Experiment, Outcome, load_experiment


class Plain(Experiment):
    arms = {"a": Arm(None, "an arm", "none"), "b": Arm(None, "a control", "control")}

    def run(self, arm: str, seed: int) -> Outcome:
        return Outcome({"accuracy": 1.0})


def test_an_outcome_is_strict_json_and_names_what_diverged() -> None:
    outcome = Outcome(
        {"accuracy": np.float32(0.5), "loss": float("nan")},
        {"loss": np.array([1.0, float("inf")])},
        notes={"table": np.arange(3), "share": float("nan")},
    )
    record = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert record["metrics"] == {"accuracy": 0.5, "loss": None}
    assert record["diverged"] == ["loss"]
    assert record["curves"] == {"loss": [1.0, None]}
    assert record["notes"] == {"table": [0, 1, 2], "share": None}


def test_a_reference_names_a_key_of_experiments_or_a_class() -> None:
    assert load_experiment("toy_experiments:main").title == "A toy"
    assert type(load_experiment("toy_experiments:Faulty")).__name__ == "Faulty"
    assert load_experiment("toy_experiments:main", "smoke").size == "smoke"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("toy_experiments", "package.module:NAME"),
        ("no_such_module:main", "no_such_module is not found"),
        ("toy_experiments:nothing", "main, slow, faulty"),
    ],
)
def test_a_wrong_reference_says_what_would_do(reference: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_experiment(reference)


def test_an_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(UserError, match="size: given huge; allowed: smoke, full"):
        Plain("huge")


def test_controls_are_the_arms_of_that_role() -> None:
    assert Plain().controls == ("b",)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"arms": {}}, "at least one arm"),
        ({"arms": {"a/b": Arm(None, "")}}, "it becomes a folder"),
        ({"arms": {"a": Arm(None, "", "villain")}}, "none, rival, method, control, ablation"),
        (
            {"claims": (Claim("x", "a", over="z", metric="m"),)},
            "arm of the claim 'x': given z; allowed: a, b",
        ),
        ({"claims": (Claim("x", "a", over="b", metric="m", better="more"),)}, "higher, lower"),
    ],
)
def test_a_contradictory_experiment_is_refused(attributes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        type("Wrong", (Plain,), attributes)().check()
