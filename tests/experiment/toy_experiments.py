"""Experiments whose arms are a few lines of numpy, for the tests of the machinery."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.experiment import Arm, Claim, Exact, Experiment, Outcome

SHIFT = {"none": 0.0, "kd": 0.02, "method": 0.05, "shuffled": -0.01}


class Toy(Experiment):
    """Accuracy is 0.7 plus a shift of the arm, noise shared within a seed, and a little of its own."""

    title = "A toy"
    testbed = "toy:plain"
    arms = {
        "none": Arm(None, "no distillation", "none"),
        "kd": Arm(None, "plain distillation", "rival"),
        "method": Arm(None, "the method", "method"),
        "shuffled": Arm(None, "the method with a shuffled teacher", "control"),
    }
    claims = (
        Claim(
            "The method beats training alone",
            "method",
            over="none",
            metric="accuracy",
            margin=0.01,
            source="[paper] table 1",
        ),
        Claim("Training alone beats the method", "none", over="method", metric="accuracy"),
        Claim(
            "The method costs less than the rival",
            "method",
            over="kd",
            metric="ece",
            better="lower",
            margin=1.0,
        ),
        Exact("One is one", check=lambda: 0.0, tolerance=1e-12),
        Exact("Two is one", check=lambda: 1.0, tolerance=1e-12),
        Exact("This check fails", check=lambda: 1 / 0, tolerance=1e-12),
    )

    def prepare(self) -> dict[str, Any]:
        check = {"name": "teacher accuracy", "value": 0.9, "bound": "between 0.6 and 0.99", "passed": True}
        return {
            "gate": {"passed": True, "checks": [check]},
            "data": {"toy.csv": "ab" * 32},
            "reference": {"teacher": {"accuracy": 0.9, "ece": 0.02}},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, sorted(SHIFT).index(arm)])
        accuracy = 0.7 + SHIFT[arm] + 0.02 * shared.standard_normal() + 0.002 * own.standard_normal()
        curve = [accuracy - 0.3 / (epoch + 1) for epoch in range(6)]
        bins = [0.1 * index + 0.05 for index in range(10)]
        reliability = {"confidence": bins, "accuracy": [value * 0.95 for value in bins], "share": [0.1] * 10}
        return Outcome(
            {"accuracy": accuracy, "ece": 0.05 + 0.01 * own.standard_normal()},
            {"validation_accuracy": curve},
            notes={"reliability": reliability},
        )


class Slow(Toy):
    """Leaves a mark for each run, so that a test sees what ran and when."""

    def run(self, arm: str, seed: int) -> Outcome:
        with (Path(os.environ["TOY_MARKS"]) / f"{arm}-{seed}-{time.time_ns()}").open("w"):
            time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        return super().run(arm, seed)


class Faulty(Toy):
    """One arm raises with seed 1, another kills its process with seed 2, a third diverges with seed 3."""

    def run(self, arm: str, seed: int) -> Outcome:
        print("this line must not disturb the answers")
        if (arm, seed) == ("kd", 1):
            raise ValueError("the rival broke")
        if (arm, seed) == ("method", 2):
            os.kill(os.getpid(), 9)
        if (arm, seed) == ("none", 3):
            return Outcome({"accuracy": float("nan"), "ece": 0.1}, {"loss": [1.0, float("inf")]})
        return super().run(arm, seed)


class Gated(Toy):
    """Its gate does not pass."""

    def prepare(self) -> dict[str, Any]:
        check = {"name": "teacher accuracy", "value": 0.1, "bound": "above 0.6", "passed": False}
        return {"gate": {"passed": False, "checks": [check]}, "data": {}, "reference": {}}


class Threads(Experiment):
    """Reports the process it ran in and its threads."""

    arms = {"a": Arm(None, "an arm", "none"), "b": Arm(None, "another arm")}
    metric = "threads"

    def run(self, arm: str, seed: int) -> Outcome:
        import torch

        draws = {"numpy": float(np.random.random()), "torch": float(torch.rand(()))}
        return Outcome({"threads": torch.get_num_threads(), "process": os.getpid(), **draws})


EXPERIMENTS = {"main": Toy, "slow": Slow, "faulty": Faulty, "gated": Gated, "threads": Threads}
