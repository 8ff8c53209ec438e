"""Verdicts against hand-computed cases, and the coverage of the interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, t

from limbeck.experiment.base import Claim, Exact
from limbeck.experiment.statistics import decide, decide_exact, mean_interval, summary, void

CLAIM = Claim("ours beats theirs", "ours", over="theirs", metric="accuracy", margin=0.01)


def outcomes(ours: list[float | None], theirs: list[float | None], metric: str = "accuracy") -> dict:
    return {
        name: {seed: {metric: value} for seed, value in enumerate(values)}
        for name, values in (("ours", ours), ("theirs", theirs))
    }


def test_summary_by_hand() -> None:
    assert summary([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "n": 3}
    assert summary([4.0]) == {"mean": 4.0, "std": None, "n": 1}
    assert summary([1.0, None, float("nan"), 3.0]) == {
        "mean": 2.0,
        "std": math.sqrt(2),
        "n": 2,
        "diverged": 2,
    }
    assert summary([None]) == {"mean": None, "std": None, "n": 0, "diverged": 1}


def test_the_exact_bootstrap_is_the_enumeration_of_all_resamples() -> None:
    sample = [0.3, -0.1, 0.25, 0.02, 0.4]
    means = np.sort([np.mean(draw) for draw in itertools.product(sample, repeat=5)])
    tail = norm.cdf(-math.sqrt(5 / 4) * t.ppf(0.975, 4))
    low, high = means[int(tail * len(means))], means[-1 - int(tail * len(means))]
    assert mean_interval(sample) == pytest.approx((low, high), abs=1e-12)


def test_with_few_seeds_the_interval_is_students() -> None:
    sample = np.array([0.01, 0.03, 0.02])
    reach = t.ppf(0.975, 2) * sample.std(ddof=1) / math.sqrt(3)
    assert mean_interval(sample.tolist()) == pytest.approx((0.02 - reach, 0.02 + reach))


@pytest.mark.parametrize("count", [3, 5, 8, 12])
def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(count: int) -> None:
    generator = np.random.default_rng(count)
    trials = 150 if count > 9 else 600
    hits = 0
    for _ in range(trials):
        interval = mean_interval((1.0 + generator.standard_normal(count)).tolist())
        assert interval is not None
        hits += interval[0] <= 1.0 <= interval[1]
    assert 0.88 < hits / trials <= 0.99


def test_the_interval_is_deterministic_and_needs_two_values() -> None:
    many = np.random.default_rng(0).standard_normal(15).tolist()
    assert mean_interval(many) == mean_interval(many)
    assert mean_interval([0.1]) is None
    assert mean_interval([0.1, 0.1, 0.1]) == (0.1, 0.1)


def test_the_interval_mirrors_when_the_signs_do() -> None:
    sample = [0.3, -0.1, 0.25, 0.02, 0.4, 0.9]
    low, high = mean_interval(sample)
    assert mean_interval([-value for value in sample]) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.84, 0.85, 0.86, 0.83, 0.87], [0.80, 0.81, 0.82, 0.79, 0.83], "reproduced"),  # always +0.04
        ([0.84, 0.85, 0.86, 0.83, 0.87], [0.84, 0.85, 0.86, 0.83, 0.87], "not reproduced"),  # always 0
        ([0.84, 0.80, 0.86, 0.83, 0.87], [0.80, 0.85, 0.82, 0.84, 0.83], "inconclusive"),
        (
            [0.81, 0.81, 0.81],
            [0.80, 0.80, 0.80],
            "inconclusive",
        ),  # exactly the margin is not more than the margin
    ],
)
def test_verdicts_by_hand(ours: list[float], theirs: list[float], verdict: str) -> None:
    ours = [round(value, 2) for value in ours]
    claim = (
        CLAIM if verdict != "inconclusive" or len(ours) == 5 else Claim("", "ours", "theirs", "accuracy", 0.81 - 0.80)
    )
    record = decide(claim, outcomes(ours, theirs))
    assert record["verdict"] == verdict
    assert record["difference"] == pytest.approx(np.mean(np.array(ours) - np.array(theirs)))


def test_lower_is_better_turns_the_sign() -> None:
    claim = Claim("ours errs less", "ours", over="theirs", metric="error", better="lower")
    record = decide(claim, outcomes([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], "error"))
    assert (record["verdict"], record["difference"]) == ("reproduced", pytest.approx(0.1))


def test_a_negative_margin_allows_a_small_loss() -> None:
    claim = Claim("ours is not worse by more than 0.02", "ours", over="theirs", metric="accuracy", margin=-0.02)
    assert decide(claim, outcomes([0.79] * 3, [0.80] * 3))["verdict"] == "reproduced"
    assert decide(claim, outcomes([0.77] * 3, [0.80] * 3))["verdict"] == "not reproduced"


def test_an_arm_that_diverged_is_worse_and_says_so() -> None:
    record = decide(CLAIM, outcomes([0.9, 0.9, None, 0.9, float("nan")], [0.8] * 5))
    assert record["verdict"] == "not reproduced"
    assert record["reason"] == "ours diverged with seeds 2, 4"
    assert record["difference"] == pytest.approx(0.1)


def test_a_rival_that_diverged_leaves_the_claim_open() -> None:
    record = decide(CLAIM, outcomes([0.9] * 5, [0.8, 0.8, float("inf"), 0.8, 0.8]))
    assert record["verdict"] == "inconclusive"
    assert "theirs diverged with seed 2" in record["reason"]


def test_what_did_not_run_or_was_not_reported_leaves_the_claim_open() -> None:
    assert "theirs did not run" in decide(CLAIM, {"ours": {0: {"accuracy": 1.0}}})["reason"]
    assert "did not report accuracy" in decide(CLAIM, outcomes([1.0] * 3, [0.9] * 3, "loss"))["reason"]
    assert "seeds 3, 4 ran on one side only" in decide(CLAIM, outcomes([0.9] * 5, [0.8] * 3))["reason"]
    assert "2 paired seeds; at least 3" in decide(CLAIM, outcomes([0.9] * 2, [0.8] * 2))["reason"]


def test_exact_claims() -> None:
    claim = Exact("a is b", check=lambda: 0.0, tolerance=1e-6)
    assert decide_exact(claim, 1e-6)["verdict"] == "reproduced"
    assert decide_exact(claim, 2e-6)["verdict"] == "not reproduced"
    assert decide_exact(claim, float("nan"))["verdict"] == "not reproduced"
    assert decide_exact(claim, None, "it raised")["reason"] == "it raised"


def test_a_closed_gate_voids_comparisons_and_not_mathematics() -> None:
    compared = decide(CLAIM, outcomes([0.9] * 3, [0.8] * 3))
    exact = decide_exact(Exact("a is b", check=lambda: 0.0, tolerance=1e-6), 0.0)
    voided = void([compared, exact], "the gate did not pass")
    assert [claim["verdict"] for claim in voided] == ["inconclusive", "reproduced"]
    assert voided[0]["difference"] == compared["difference"]
