"""Calibration on predictors whose calibration is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.errors import UserError
from limbeck.measure import (
    brier,
    calibration_summary,
    ece_interval,
    expected_calibration_error,
    fit_temperature,
    nll,
    reliability,
)


def predictions(size: int, temperature: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets drawn from them: calibrated when ``temperature`` is 1, overconfident below."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 5, generator=generator) * 1.5
    target = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
    return logits / temperature, target


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_a_calibrated_predictor_tends_to_zero(binning):
    errors = [expected_calibration_error(*predictions(size), binning=binning) for size in (200, 5_000, 200_000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.005


def test_overconfidence_is_measured_in_full():
    logits = torch.zeros(1000, 2)
    logits[:, 0] = 50.0
    target = (torch.arange(1000) >= 700).long()
    assert expected_calibration_error(logits, target) == pytest.approx(0.3)
    assert expected_calibration_error(logits, target, binning="mass", bins=1) == pytest.approx(0.3)


def test_equal_width_agrees_with_torchmetrics():
    logits, target = predictions(3000, 0.6)
    theirs = multiclass_calibration_error(logits.double().softmax(-1), target, num_classes=5, n_bins=15)
    assert expected_calibration_error(logits, target) == pytest.approx(float(theirs), abs=1e-6)


def test_equal_mass_by_hand():
    confident = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
    logits = torch.stack([confident, 1 - confident], dim=1).log()
    target = torch.tensor([1, 0, 0, 1])
    # Bins {0.6, 0.7} and {0.8, 0.9}: half of each is right.
    value = expected_calibration_error(logits, target, bins=2, binning="mass")
    assert value == pytest.approx(0.5 * abs(0.5 - 0.65) + 0.5 * abs(0.5 - 0.85))


def test_reliability_counts_every_sample_once_and_gives_the_ece():
    logits, target = predictions(2000, 0.5)
    for binning in ("width", "mass"):
        table = reliability(logits, target, binning=binning)
        assert sum(row.count for row in table) == 2000
        weighed = sum(row.count * abs(row.accuracy - row.confidence) for row in table) / 2000
        assert weighed == pytest.approx(expected_calibration_error(logits, target, binning=binning))
        assert all(row.low <= row.confidence <= row.high + 1e-12 for row in table)
    assert {row.count for row in reliability(logits, target, bins=10, binning="mass")} == {200}


def test_the_interval_holds_the_ece_of_a_bad_predictor_and_is_repeatable():
    logits, target = predictions(2000, 0.4)
    low, high = ece_interval(logits, target, resamples=200)
    assert low < expected_calibration_error(logits, target) < high
    assert high - low < 0.1
    assert (low, high) == ece_interval(logits, target, resamples=200)
    assert (low, high) != ece_interval(logits, target, resamples=200, seed=1)
    small = ece_interval(logits[:200], target[:200], resamples=200)
    assert small[1] - small[0] > high - low


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_scaling_finds_the_temperature(temperature):
    logits, target = predictions(20_000, temperature)
    found = fit_temperature(logits, target)
    assert found == pytest.approx(1 / temperature, rel=0.05)
    assert nll(logits / found, target) <= min(nll(logits / (found * factor), target) for factor in (0.98, 1, 1.02))
    assert expected_calibration_error(logits / found, target) < 0.02


def test_temperature_stays_bounded_when_every_guess_is_right():
    found = fit_temperature(torch.eye(4) * 3, torch.arange(4))
    assert 0.0099 < found < 0.05
    assert np.isfinite(nll(torch.eye(4) * 3 / found, torch.arange(4)))


def test_the_summary_holds_the_parts():
    logits, target = predictions(500)
    found = calibration_summary(logits, target, resamples=50)
    assert found.brier == brier(logits, target)
    assert found.nll == nll(logits, target)
    assert found.ece == expected_calibration_error(logits, target)
    assert set(found.to_dict()) == {"ece", "ece_interval", "ece_equal_mass", "brier", "nll", "reliability"}


def test_wrong_options_are_named():
    logits, target = predictions(10)
    with pytest.raises(UserError, match="binning: given with; allowed: width, mass"):
        expected_calibration_error(logits, target, binning="with")
    with pytest.raises(UserError, match="bins"):
        expected_calibration_error(logits, target, bins=0)
    with pytest.raises(UserError, match="level"):
        ece_interval(logits, target, level=95)
