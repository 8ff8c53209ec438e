from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.diffusion.generators import Generator
from limbeck.experiment import Arm
from limbeck.experiment.generators import GeneratorExperiment, Regression, TeacherSteps, Untrained


class Plane(GeneratorExperiment):
    testbed = "gaussian_mixture:plain"
    metric = "score_gap"
    samples = {"smoke": 400, "full": 400}
    steps = {"smoke": 60, "full": 60}
    batch_size = {"smoke": 8, "full": 8}
    arms = {
        "none": Arm(Untrained(), "untrained", "none"),
        "teacher-1": Arm(TeacherSteps(1, 1.0), "one step", "rival"),
        "teacher-25": Arm(TeacherSteps(25, 1.0), "25 steps", "rival"),
        "heun-8": Arm(TeacherSteps(8, 1.0, "heun"), "8 steps of Heun", "rival"),
        "regression": Arm(Regression(TeacherSteps(4, 1.0), pairs=8, steps=60), "regression", "rival"),
        "broken": Arm("nan", "a generator of NaN", "method"),
    }
    shown = ("teacher-25",)

    def generator(self, steps: int = 1, **options: Any) -> Generator:
        return Generator(self.network(), self.bed.schedule, steps=steps, prediction="x0")

    def sampler(self, setting: Any, seed: int) -> Any:
        if setting == "nan":
            return lambda noise, labels: torch.full_like(noise, torch.nan), {}
        return super().sampler(setting, seed)

    def distiller(self, setting: Any, seed: int) -> Any:
        raise AssertionError("no arm trains a method")


@pytest.fixture(scope="module")
def plane() -> Plane:
    made = Plane("smoke")
    made.prepare()
    return made


def test_the_teacher_is_better_with_more_steps_and_repeats_itself(plane: Plane) -> None:
    gaps = {name: plane.run(name, 0).metrics["score_gap"] for name in ("teacher-1", "teacher-25", "heun-8")}
    assert gaps["teacher-25"] < 0.1 * gaps["teacher-1"]
    assert gaps["heun-8"] < gaps["teacher-1"]
    assert plane.run("teacher-25", 0).metrics == plane.run("teacher-25", 0).metrics
    assert plane.run("teacher-25", 1).metrics != plane.run("teacher-25", 0).metrics


def test_regression_learns_its_pairs_and_logs_are_logs(plane: Plane) -> None:
    outcome = plane.run("regression", 0)
    curve = outcome.curves["mse"]
    assert curve[-1] < curve[0]
    assert outcome.metrics["log_score_gap"] == pytest.approx(math.log(outcome.metrics["score_gap"]))
    assert plane.run("none", 0).curves == {}


def test_pictures_are_of_one_seed_and_of_the_shown_arms(plane: Plane) -> None:
    assert set(plane.run("teacher-25", 0).pictures) == {"samples"}
    assert not plane.run("teacher-25", 1).pictures
    assert not plane.run("teacher-1", 0).pictures


def test_a_broken_generator_is_recorded_as_diverged(plane: Plane) -> None:
    broken = plane.run("broken", 0)
    assert set(broken.metrics) == set(plane.run("none", 0).metrics)
    assert broken.to_json()["diverged"] == sorted(broken.metrics)
