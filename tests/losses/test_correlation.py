"""Correlation losses against numpy's and scipy's own, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import special, stats

from limbeck.errors import UserError
from limbeck.losses import correlation as c

from . import invariants as check

STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
LOSSES = {
    "pearson_distance": (c.pearson_distance, False),
    "spearman": (c.spearman, False),
    "dist_inter": (partial(c.dist_inter, temperature=2.0), False),
    "dist_intra": (partial(c.dist_intra, temperature=2.0), True),
    "dist": (partial(c.dist, temperature=2.0, inter_weight=2.0, intra_weight=0.5), True),
}
every_loss = pytest.mark.parametrize(("loss", "batchwise"), LOSSES.values(), ids=LOSSES)


def correlations(first, second):
    """Row by row, by numpy."""
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])


@every_loss
def test_contract(loss, batchwise):
    check.check_contract(loss, STUDENT, TEACHER, batchwise=batchwise)
    check.check_leading_axes(loss, STUDENT, TEACHER)
    check.check_shift(loss, STUDENT, TEACHER)


@every_loss
def test_gradient(loss, batchwise):
    check.check_gradient(loss, STUDENT, TEACHER, wrt=(0, 1))


@every_loss
def test_zero_at_match(loss, batchwise):
    check.check_zero_at_match(loss, STUDENT, STUDENT)


@every_loss
def test_finite_in_half_precision(loss, batchwise):
    check.check_half(loss, *check.extreme_logits())


def test_pearson_agrees_with_numpy():
    want = 1 - correlations(STUDENT.numpy(), TEACHER.numpy())
    torch.testing.assert_close(c.pearson_distance(STUDENT, TEACHER, reduction="none"), torch.from_numpy(want))
    affine = c.pearson_distance(STUDENT, STUDENT * torch.linspace(0.1, 5, 8)[:, None] + 3, reduction="none")
    torch.testing.assert_close(affine, torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(c.pearson_distance(STUDENT, -STUDENT), torch.tensor(2.0, dtype=torch.float64))


def test_pearson_of_tiny_numbers_is_the_same():
    """Probabilities of 1e-20 have squares that underflow in float32."""
    want = c.pearson_distance(STUDENT.float(), TEACHER.float())
    torch.testing.assert_close(c.pearson_distance(STUDENT.float() * 1e-25, TEACHER.float() * 1e25), want)


@pytest.mark.parametrize("number", [0.0, 0.1, 1 / 3, 1e4])
def test_constant_rows(number):
    flat = torch.full((2, 7), number)
    other = check.logits(2, 7, dtype=torch.float32)
    for loss in (c.pearson_distance, c.spearman, c.dist_inter):
        value, grad = check.gradient(loss, flat, other)
        assert value.item() == pytest.approx(1.0)
        assert not grad.any()
        value, grad = check.gradient(loss, flat, flat)
        assert value.item() == 0.0
        assert not grad.any()


def test_spearman_tends_to_scipy_when_sharp_and_to_pearson_when_soft():
    want = [1 - stats.spearmanr(a, b).statistic for a, b in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True)]
    sharp = c.spearman(STUDENT, TEACHER, temperature=1e-4, reduction="none")
    torch.testing.assert_close(sharp, torch.tensor(want, dtype=torch.float64))
    soft = c.spearman(STUDENT, TEACHER, temperature=1e4, reduction="none")
    torch.testing.assert_close(soft, c.pearson_distance(STUDENT, TEACHER, reduction="none"), rtol=1e-4, atol=1e-6)


def test_soft_ranks():
    scores = torch.tensor([3.0, -1.0, 3.0, 7.0])
    torch.testing.assert_close(c.soft_ranks(scores, temperature=1e-3), torch.tensor([2.5, 1.0, 2.5, 4.0]))
    soft = c.soft_ranks(STUDENT)
    torch.testing.assert_close(soft.sum(-1), torch.full((8,), 21.0, dtype=torch.float64))
    assert torch.equal(soft.argsort(-1), STUDENT.argsort(-1))


def test_dist_agrees_with_numpy():
    q, p = (special.softmax(side.numpy() / 4, axis=-1) for side in (STUDENT, TEACHER))
    inter, intra = 16 * (1 - correlations(q, p)).mean(), 16 * (1 - correlations(q.T, p.T)).mean()
    options = {"temperature": 4.0}
    assert c.dist_inter(STUDENT, TEACHER, **options).item() == pytest.approx(inter, rel=1e-10)
    assert c.dist_intra(STUDENT, TEACHER, **options).item() == pytest.approx(intra, rel=1e-10)
    both = c.dist(STUDENT, TEACHER, inter_weight=2.0, intra_weight=3.0, **options)
    assert both.item() == pytest.approx(2 * inter + 3 * intra, rel=1e-10)
    plain = c.dist(STUDENT, TEACHER, inter_weight=2.0, intra_weight=3.0, scale="none", **options)
    torch.testing.assert_close(both, plain * 16)


def test_dist_of_one_row_and_of_padded_classes():
    """One row has no correlation along the batch: no gradient, no NaN. Dead classes only dilute the mean."""
    value, grad = check.gradient(c.dist_intra, STUDENT[:1], TEACHER[:1])
    assert value.item() == 0.0
    assert not grad.any()
    padding = torch.full((8, 6), -float("inf"), dtype=torch.float64)
    padded = [torch.cat([side, padding], -1) for side in (STUDENT, TEACHER)]
    value, grad = check.gradient(c.dist_intra, *padded)
    torch.testing.assert_close(value, c.dist_intra(STUDENT, TEACHER) / 2)
    assert torch.isfinite(grad).all()


def test_intra_part_depends_on_the_batch():
    """Why it is marked batch-wise: pieces do not add up to the whole."""
    whole = c.dist_intra(STUDENT, TEACHER)
    pieces = sum(c.dist_intra(STUDENT[i : i + 4], TEACHER[i : i + 4], denominator=8) for i in (0, 4))
    assert (whole - pieces).abs() > 1e-3


def test_errors_name_the_argument():
    cases = [
        ("teacher", lambda: c.pearson_distance(STUDENT, TEACHER[:4])),
        ("teacher_logits", lambda: c.dist(STUDENT, TEACHER[:, :5])),
        ("student_logits", lambda: c.dist(STUDENT[:, :1], TEACHER[:, :1])),
        ("temperature", lambda: c.spearman(STUDENT, TEACHER, temperature=0.0)),
        ("scale", lambda: c.dist(STUDENT, TEACHER, scale="tau")),
    ]
    for key, call in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.key == key
