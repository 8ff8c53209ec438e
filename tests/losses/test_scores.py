"""Losses of one score per row against plain formulas, and the invariants of every loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import entr, expit, logit

from limbeck.errors import UserError
from limbeck.losses.scores import score_mse, soft_bce

from . import invariants as check

LOGITS = check.logits(12, seed=1)
TARGET = check.logits(12, seed=2).sigmoid()


def test_bce_agrees_with_its_formula_and_with_hard_labels():
    p, y = expit(LOGITS.numpy()), TARGET.numpy()
    np.testing.assert_allclose(
        soft_bce(LOGITS, TARGET, reduction="none").numpy(), -y * np.log(p) - (1 - y) * np.log(1 - p), rtol=1e-12
    )
    hard = (TARGET > 0.5).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, hard)
    torch.testing.assert_close(soft_bce(LOGITS, hard), expected)


def test_bce_is_least_at_the_targets_own_logit_and_there_its_entropy():
    best = torch.from_numpy(logit(TARGET.numpy()))
    value, grad = check.gradient(soft_bce, best, TARGET, reduction="none")
    np.testing.assert_allclose(value.numpy(), entr(TARGET.numpy()) + entr(1 - TARGET.numpy()), rtol=1e-10)
    assert float(grad.abs().max()) < 1e-12
    assert bool((soft_bce(best + 0.3, TARGET, reduction="none") > value).all())


def test_bce_has_no_floor_below_zero_targets_as_its_docstring_says():
    below = torch.full((2,), -0.1)
    assert float(soft_bce(torch.tensor([-100.0, -100.0]), below)) < float(soft_bce(torch.tensor([-10.0, -10.0]), below))
    assert float(soft_bce(torch.tensor([-1e4, -1e4]), below)) < -900


def test_mse_agrees_with_its_formula_and_is_zero_at_match():
    np.testing.assert_allclose(
        score_mse(LOGITS, TARGET, reduction="none").numpy(), np.square(LOGITS.numpy() - TARGET.numpy()), rtol=1e-12
    )
    check.check_zero_at_match(score_mse, LOGITS, LOGITS.clone())


@pytest.mark.parametrize("loss", [soft_bce, score_mse])
def test_the_contract(loss):
    check.check_contract(loss, LOGITS, TARGET)
    check.check_leading_axes(loss, LOGITS, TARGET)
    check.check_gradient(loss, LOGITS, TARGET)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_large_logits(dtype):
    logits = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    value = soft_bce(logits, torch.tensor([0.0, 1.0, 0.5], dtype=dtype), reduction="none")
    assert value.dtype == torch.float32
    assert bool(value.isfinite().all())
    value.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_a_column_is_not_a_row_of_scores():
    with pytest.raises(UserError, match="target"):
        soft_bce(LOGITS.unsqueeze(-1), TARGET)
