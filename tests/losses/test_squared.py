"""Squared errors of probabilities against plain sums, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import special

from limbeck.errors import UserError
from limbeck.losses.squared import brier, probability_mse
from limbeck.measure import calibration

from . import invariants as check

STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
TARGET = check.labels(8, classes=6, seed=3)
VOTES = check.logits(8, 6, seed=4).softmax(-1)


@pytest.mark.parametrize("per_row", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_agreement_with_plain_sums(per_row, temperature):
    ours, theirs = (special.softmax(logits.numpy() / temperature, axis=-1) for logits in (STUDENT, TEACHER))
    expected = getattr(np.square(ours - theirs), per_row)(axis=-1)
    got = probability_mse(STUDENT, TEACHER, temperature=temperature, per_row=per_row, reduction="none")
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("per_row", ["mean", "sum"])
def test_brier_agrees_with_plain_sums_on_labels_and_votes(per_row):
    said = special.softmax(STUDENT.numpy(), axis=-1)
    for target, truth in ((TARGET, np.eye(6)[TARGET.numpy()]), (VOTES, VOTES.numpy())):
        got = brier(STUDENT, target, per_row=per_row, reduction="none")
        np.testing.assert_allclose(got.numpy(), getattr(np.square(said - truth), per_row)(axis=-1), rtol=1e-12)


def test_the_sum_is_the_measured_brier_score_and_the_mean_is_smaller_by_the_number_of_classes():
    measured = calibration.brier(STUDENT.log_softmax(-1), TARGET)
    assert float(brier(STUDENT, TARGET, per_row="sum")) == pytest.approx(measured, rel=1e-6)
    torch.testing.assert_close(6 * brier(STUDENT, TARGET), brier(STUDENT, TARGET, per_row="sum"))
    plain = torch.nn.functional.mse_loss(STUDENT.softmax(-1), torch.nn.functional.one_hot(TARGET, 6).double())
    torch.testing.assert_close(brier(STUDENT, TARGET), plain)


@pytest.mark.parametrize("per_row", ["mean", "sum"])
def test_the_contract(per_row):
    for loss, other in ((probability_mse, TEACHER), (brier, TARGET), (brier, VOTES)):
        loss = partial(loss, per_row=per_row)
        poison = (0,) if other is TARGET else None
        check.check_reductions(loss, STUDENT, other)
        check.check_weight(loss, STUDENT, other)
        check.check_masked_rows(loss, STUDENT, other, poison=poison)
        check.check_split(loss, STUDENT, other)
        check.check_row_order(loss, STUDENT, other)
        check.check_leading_axes(loss, STUDENT, other)
        check.check_gradient(loss, STUDENT, other)


def test_zero_at_match_and_blind_to_shifts():
    check.check_zero_at_match(probability_mse, STUDENT, STUDENT.clone())
    check.check_zero_at_match(brier, STUDENT, STUDENT.softmax(-1))
    check.check_shift(probability_mse, STUDENT, TEACHER)


def test_half_precision_at_large_gaps():
    student, teacher = check.extreme_logits()
    check.check_half(probability_mse, student, teacher)
    check.check_half(brier, student, check.labels(8, classes=5))
    assert float(brier(student, check.labels(8, classes=5), per_row="sum", reduction="none").max()) <= 2.0


def test_ignored_labels_leave_sum_and_denominator():
    target = TARGET.clone()
    target[:3] = -100
    torch.testing.assert_close(brier(STUDENT, target), brier(STUDENT[3:], TARGET[3:]))


def test_a_temperature_for_each_row():
    rows = torch.linspace(0.5, 4.0, 8, dtype=torch.float64)
    got = probability_mse(STUDENT, TEACHER, temperature=rows, reduction="none")
    for row in range(8):
        one = probability_mse(STUDENT[row], TEACHER[row], temperature=float(rows[row]))
        torch.testing.assert_close(got[row], one)


def test_wrong_use_is_refused_by_name():
    with pytest.raises(UserError, match="teacher_logits"):
        probability_mse(STUDENT, TEACHER[:, :3])
    with pytest.raises(UserError, match="per_row: given max; allowed: mean, sum"):
        probability_mse(STUDENT, TEACHER, per_row="max")
    with pytest.raises(UserError, match="temperature"):
        probability_mse(STUDENT, TEACHER, temperature=0.0)
    with pytest.raises(UserError, match="label 9"):
        brier(STUDENT, torch.full((8,), 9))
    with pytest.raises(UserError, match="target"):
        brier(STUDENT, VOTES[:, :3])
