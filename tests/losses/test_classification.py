"""Cross-entropy, DKD and standardised logits against plain sums, and the invariants of every loss."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import special

from limbeck.errors import UserError
from limbeck.losses import classification as c
from limbeck.losses.divergences import forward_kl

from . import invariants as check

INF = float("inf")
STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
TARGET = check.labels(8, classes=6, seed=3)
VOTES = check.logits(8, 6, seed=4).softmax(-1)


def dkd_reference(student, teacher, label, alpha, beta, temperature):
    """The published definition with plain probabilities, in loops."""

    def split(row):
        raised = [math.exp(value / temperature) for value in row]
        p = [value / math.fsum(raised) for value in raised]
        others = [value for i, value in enumerate(p) if i != label]
        return (p[label], math.fsum(others)), [value / math.fsum(others) for value in others]

    def kl(target, model):
        return math.fsum(a * math.log(a / b) for a, b in zip(target, model, strict=True))

    (binary_q, other_q), (binary_p, other_p) = split(student), split(teacher)
    return temperature**2 * (alpha * kl(binary_p, binary_q) + beta * kl(other_p, other_q))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_with_plain_sums(smoothing):
    log_probs = special.log_softmax(STUDENT.numpy(), axis=-1)
    hard = np.eye(6)[TARGET.numpy()]
    for target, votes in ((TARGET, hard), (VOTES, VOTES.numpy())):
        smooth = (1 - smoothing) * votes + smoothing / 6
        got = c.cross_entropy(STUDENT, target, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(got, torch.from_numpy(-(smooth * log_probs).sum(-1)))


def test_cross_entropy_agrees_with_torch_on_images():
    student, target = check.logits(2, 4, 5, 6), check.labels(2, 4, 5, classes=6)
    target[0, 1] = -100
    ours = c.cross_entropy(student, target, label_smoothing=0.2)
    theirs = torch.nn.functional.cross_entropy(student.permute(0, 3, 1, 2), target, label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs)


def test_ignored_labels_leave_sum_and_denominator():
    target = TARGET.clone()
    target[[1, 4]] = -100
    keep = target != -100
    for loss in (c.cross_entropy, lambda s, y, **o: c.decoupled_kd(s, TEACHER[: len(s)], y, **o)):
        rows = loss(STUDENT, target, reduction="none")
        assert torch.equal(rows[~keep], torch.zeros(2, dtype=torch.float64))
        torch.testing.assert_close(loss(STUDENT, target), rows.sum() / 6)
        value, grad = check.gradient(loss, STUDENT, torch.full_like(target, -100))
        assert value.item() == 0.0
        assert not grad.any()
    torch.testing.assert_close(c.cross_entropy(STUDENT, target), c.cross_entropy(STUDENT[keep], TARGET[keep]))
    with pytest.raises(UserError, match="-100"):
        c.cross_entropy(STUDENT, target, ignore_index=-1)


def test_smoothing_skips_padded_classes():
    padding = torch.full((8, 2), -INF, dtype=torch.float64)
    value, grad = check.gradient(c.cross_entropy, torch.cat([STUDENT, padding], -1), TARGET, label_smoothing=0.1)
    torch.testing.assert_close(value, c.cross_entropy(STUDENT, TARGET, label_smoothing=0.1))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("target", [TARGET, VOTES], ids=["hard", "soft"])
def test_cross_entropy_contract(target):
    loss = partial(c.cross_entropy, label_smoothing=0.1)
    check.check_contract(loss, STUDENT, target)
    check.check_leading_axes(loss, STUDENT, target)
    check.check_gradient(loss, STUDENT, target)
    check.check_shift(loss, STUDENT, target, places=(0,))
    student, _ = check.extreme_logits(6)
    check.check_half(loss, student, target)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.5, 0.0), (0.0, 2.0)])
def test_decoupled_kd_agrees_with_plain_sums(temperature, alpha, beta):
    got = c.decoupled_kd(STUDENT, TEACHER, TARGET, alpha=alpha, beta=beta, temperature=temperature, reduction="none")
    want = [
        dkd_reference(s, t, y, alpha, beta, temperature)
        for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), TARGET.tolist(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_decoupled_kd_with_the_teachers_own_weight_is_forward_kl():
    """The identity of the paper: KL = target part + (1 - p_y) * other part."""
    options = {"temperature": 2.0, "reduction": "none"}
    others = 1 - (TEACHER / 2).softmax(-1).gather(-1, TARGET[:, None]).squeeze(-1)
    target_part = c.decoupled_kd(STUDENT, TEACHER, TARGET, alpha=1.0, beta=0.0, **options)
    other_part = c.decoupled_kd(STUDENT, TEACHER, TARGET, alpha=0.0, beta=1.0, **options)
    torch.testing.assert_close(target_part + others * other_part, forward_kl(STUDENT, TEACHER, **options))


def test_decoupled_kd_invariants():
    check.check_contract(c.decoupled_kd, STUDENT, TEACHER, TARGET)
    check.check_leading_axes(c.decoupled_kd, STUDENT, TEACHER, TARGET)
    check.check_shift(c.decoupled_kd, STUDENT, TEACHER, TARGET)
    check.check_gradient(c.decoupled_kd, STUDENT, TEACHER, TARGET, wrt=(0, 1))
    check.check_zero_at_match(c.decoupled_kd, STUDENT, STUDENT, TARGET)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_kd_is_finite_in_half_precision(temperature):
    """CTKD#9: log(softmax) of the label's complement is log(0) as soon as the network is sure."""
    student, teacher = check.extreme_logits()
    for label in range(5):
        target = torch.full((8,), label)
        check.check_half(partial(c.decoupled_kd, temperature=temperature), student, teacher, target)


def test_decoupled_kd_of_two_classes_and_of_padded_ones():
    two, target = STUDENT[:, :2], TARGET % 2
    torch.testing.assert_close(
        c.decoupled_kd(two, TEACHER[:, :2], target, beta=8.0),
        forward_kl(two, TEACHER[:, :2], temperature=4.0),
    )
    padding = torch.full((8, 2), -INF, dtype=torch.float64)
    value, grad = check.gradient(
        c.decoupled_kd, torch.cat([STUDENT, padding], -1), torch.cat([TEACHER, padding], -1), TARGET
    )
    torch.testing.assert_close(value, c.decoupled_kd(STUDENT, TEACHER, TARGET))
    assert torch.isfinite(grad).all()
    value, grad = check.gradient(
        c.decoupled_kd, *[torch.cat([x[:, :1], padding], -1) for x in (STUDENT, TEACHER)], TARGET * 0
    )
    assert value.item() == 0.0
    assert not grad.any()


@pytest.mark.parametrize("unbiased", [False, True])
def test_standardisation_agrees_with_numpy(unbiased):
    rows = TEACHER.numpy()
    want = (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, ddof=int(unbiased), keepdims=True) / 1.5
    got = c.logit_standardisation(TEACHER, temperature=1.5, unbiased=unbiased)
    torch.testing.assert_close(got, torch.from_numpy(want))
    padded = torch.cat([TEACHER, torch.full((8, 2), -INF, dtype=torch.float64)], -1)
    got = c.logit_standardisation(padded, temperature=1.5, unbiased=unbiased)
    torch.testing.assert_close(got[:, :6], torch.from_numpy(want))
    assert torch.isneginf(got[:, 6:]).all()


def test_standardisation_of_a_constant_row_is_zero_without_gradient():
    for number in (0.0, 0.1, 1e4):
        row = torch.full((1, 7), number, requires_grad=True)
        scores = c.logit_standardisation(row)
        (grad,) = torch.autograd.grad(scores.square().sum() + scores[0, 0], row)
        assert not scores.any()
        assert not grad.any()


def test_standardised_kl():
    want = forward_kl(*[c.logit_standardisation(x) for x in (STUDENT, TEACHER)], temperature=2.0, reduction="none")
    torch.testing.assert_close(c.standardised_kl(STUDENT, TEACHER, reduction="none"), want)
    check.check_contract(c.standardised_kl, STUDENT, TEACHER)
    check.check_leading_axes(c.standardised_kl, STUDENT, TEACHER)
    check.check_shift(c.standardised_kl, STUDENT, TEACHER)
    check.check_gradient(c.standardised_kl, STUDENT, TEACHER, wrt=(0, 1))
    check.check_half(c.standardised_kl, *check.extreme_logits())
    check.check_zero_at_match(c.standardised_kl, STUDENT, STUDENT * 3 - 2)
    padding = torch.full((8, 2), -INF, dtype=torch.float64)
    value, grad = check.gradient(
        c.standardised_kl, torch.cat([STUDENT, padding], -1), torch.cat([TEACHER, padding], -1)
    )
    torch.testing.assert_close(value, c.standardised_kl(STUDENT, TEACHER))
    assert torch.isfinite(grad).all()


def test_errors_name_the_argument():
    cases = [
        ("target", lambda: c.cross_entropy(STUDENT, TARGET + 6)),
        ("target", lambda: c.cross_entropy(STUDENT, TARGET[:5])),
        ("target", lambda: c.cross_entropy(STUDENT, VOTES[:, :5])),
        ("target", lambda: c.cross_entropy(STUDENT, TARGET - 1 - TARGET)),
        ("target", lambda: c.decoupled_kd(STUDENT, TEACHER, TARGET + 6)),
        ("target", lambda: c.decoupled_kd(STUDENT, TEACHER, VOTES)),
        ("label_smoothing", lambda: c.cross_entropy(STUDENT, TARGET, label_smoothing=1.0)),
        ("student_logits", lambda: c.decoupled_kd(STUDENT[:, :1], TEACHER[:, :1], TARGET * 0)),
        ("teacher_logits", lambda: c.decoupled_kd(STUDENT, TEACHER[:, :5], TARGET)),
        ("temperature", lambda: c.standardised_kl(STUDENT, TEACHER, temperature=-1.0)),
    ]
    for key, call in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.key == key
