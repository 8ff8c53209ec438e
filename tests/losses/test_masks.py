"""Mask losses against plain sums over pixels, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import special

from limbeck.errors import UserError
from limbeck.losses.masks import iou_regression, mask_dice, mask_focal, mask_overlap

from . import invariants as check

LOGITS = check.logits(8, 4, 5, seed=1)
TARGET = check.logits(8, 4, 5, seed=2) > 0.5
SOFT = check.logits(8, 4, 5, seed=3).sigmoid()
GUESS = check.logits(8, seed=4, scale=0.3)
KEEP = check.logits(8, 4, 5, seed=5) > -2.0


def focal_by_hand(logits, target, keep, gamma, alpha):
    rows = []
    for x, y, k in zip(logits, target, keep):
        values = []
        for place in zip(*np.nonzero(k)):
            q = special.expit(x[place])
            value = -y[place] * (1 - q) ** gamma * np.log(q) * (1 if alpha is None else alpha)
            value -= (1 - y[place]) * q**gamma * np.log1p(-q) * (1 if alpha is None else 1 - alpha)
            values.append(value)
        rows.append(np.mean(values))
    return np.array(rows)


@pytest.mark.parametrize("target", [TARGET, SOFT])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, None), (1.5, 0.5)])
def test_focal_agrees_with_a_loop_over_pixels(target, gamma, alpha):
    for keep in (None, KEEP):
        counted = np.ones(LOGITS.shape, bool) if keep is None else keep.numpy()
        expected = focal_by_hand(LOGITS.numpy(), target.double().numpy(), counted, gamma, alpha)
        got = mask_focal(LOGITS, target, gamma=gamma, alpha=alpha, position_mask=keep, reduction="none")
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("smooth", [1.0, 0.5])
def test_dice_agrees_with_plain_sums(keep, smooth):
    counted = np.ones(LOGITS.shape) if keep is None else keep.double().numpy()
    q, y = special.expit(LOGITS.numpy()) * counted, TARGET.double().numpy() * counted
    expected = 1 - (2 * (q * y).sum((1, 2)) + smooth) / (q.sum((1, 2)) + y.sum((1, 2)) + smooth)
    got = mask_dice(LOGITS, TARGET, smooth=smooth, position_mask=keep, reduction="none")
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_the_guessed_iou_is_compared_with_the_real_one_which_is_a_constant():
    real = [
        (a & b).sum() / (a | b).sum() for a, b in zip((LOGITS > 0).numpy(), TARGET.numpy())
    ]  # sets of pixels, counted
    got = iou_regression(GUESS, LOGITS, TARGET, reduction="none")
    np.testing.assert_allclose(got.numpy(), (GUESS.numpy() - np.array(real)) ** 2, rtol=1e-6)
    logits = LOGITS.clone().requires_grad_(True)
    assert not iou_regression(GUESS, logits, TARGET).requires_grad


@pytest.mark.parametrize("loss", [mask_focal, mask_dice, partial(mask_focal, gamma=0.0, alpha=None)])
def test_the_contract(loss):
    for target in (TARGET, SOFT):
        check.check_contract(loss, LOGITS, target)
        check.check_leading_axes(loss, LOGITS, target)
        check.check_gradient(loss, LOGITS, target)


def test_the_contract_of_the_guess():
    check.check_contract(iou_regression, GUESS, LOGITS, TARGET)
    check.check_gradient(iou_regression, GUESS, LOGITS, TARGET)
    exact = mask_overlap(LOGITS > 0, TARGET).double()
    check.check_zero_at_match(iou_regression, exact, LOGITS, TARGET)


def test_pixels_left_out_may_hold_anything():
    for loss in (mask_focal, mask_dice):
        clean = check.gradient(loss, LOGITS, TARGET, position_mask=KEEP)
        for number in check.GARBAGE:
            dirty = torch.where(KEEP, LOGITS, number)
            value, gradient = check.gradient(loss, dirty, TARGET, position_mask=KEEP)
            torch.testing.assert_close(value, clean[0])
            torch.testing.assert_close(gradient, clean[1])
            assert torch.equal(gradient[~KEEP], torch.zeros_like(gradient[~KEEP]))


def test_half_precision_and_sure_mistakes():
    sure = torch.full((4, 3, 3), 1e4, dtype=torch.float64)
    sure[2:] *= -1
    truth = torch.zeros(4, 3, 3, dtype=torch.bool)
    truth[::2] = True
    for loss in (mask_focal, mask_dice):
        check.check_half(loss, sure, truth)
    wrong = mask_focal(sure, truth, gamma=2.0, alpha=None, reduction="none")
    # Sure and wrong costs its logit, sure and right nothing.
    torch.testing.assert_close(wrong, torch.tensor([0.0, 1e4, 1e4, 0.0], dtype=torch.float64))


def test_empty_masks_predicted_empty_are_right():
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert float(mask_dice(torch.full((2, 4, 4), -50.0), nothing)) == pytest.approx(0, abs=1e-6)
    assert mask_overlap(nothing, nothing).tolist() == [1, 1]
    assert mask_overlap(nothing, ~nothing).tolist() == [0, 0]


def test_focal_weighs_pixels_and_dice_objects():
    """A missed object of one pixel and of half the image: focal hardly sees the first, Dice misses both alike."""
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[0, 0, 0] = True
    truth[1, :4] = True
    missed = torch.full((2, 8, 8), -9.0)
    focal, dice = (loss(missed, truth, reduction="none") for loss in (mask_focal, mask_dice))
    assert float(focal[1] / focal[0]) == pytest.approx(32, rel=1e-3)
    assert float(dice.min()) > 0.49


@pytest.mark.parametrize("loss", [mask_focal, mask_dice])
def test_what_is_refused(loss):
    with pytest.raises(UserError, match="target"):
        loss(LOGITS, TARGET[:, :2])
    with pytest.raises(UserError, match="height, width"):
        loss(torch.zeros(3), torch.zeros(3))
    with pytest.raises(UserError, match="gamma"):
        mask_focal(LOGITS, TARGET, gamma=-1.0)
