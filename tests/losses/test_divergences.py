"""Divergences against sums in double precision, class by class, and the invariants of every loss."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from limbeck.errors import UserError
from limbeck.losses import divergences as d
from limbeck.signals import SparseLogits

from . import invariants as check

INF = float("inf")


def probabilities(row, temperature=1.0):
    """Softmax by plain loops."""
    top = max(row)
    raised = [math.exp((value - top) / temperature) for value in row]
    return [value / math.fsum(raised) for value in raised]


def kl(target, model):
    return math.fsum(p * math.log(p / q) for p, q in zip(target, model, strict=True) if p > 0)


def mix(first, second, share):
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


REFERENCES = {
    "forward_kl": (d.forward_kl, lambda q, p: kl(p, q)),
    "reverse_kl": (d.reverse_kl, lambda q, p: kl(q, p)),
    "jeffreys": (
        d.jeffreys,
        lambda q, p: math.fsum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)),
    ),
    "jensen_shannon": (
        partial(d.jensen_shannon, beta=0.3),
        lambda q, p: 0.3 * kl(p, mix(p, q, 0.3)) + 0.7 * kl(q, mix(p, q, 0.3)),
    ),
    "skewed_kl": (partial(d.skewed_kl, alpha=0.2), lambda q, p: kl(p, mix(p, q, 0.2))),
    "skewed_reverse_kl": (partial(d.skewed_reverse_kl, alpha=0.2), lambda q, p: kl(q, mix(q, p, 0.2))),
    "total_variation": (
        d.total_variation,
        lambda q, p: max(0.0, math.fsum(max(a - b, 0) for a, b in zip(p, q, strict=True))),
    ),
    "soft_cross_entropy": (
        d.soft_cross_entropy,
        lambda q, p: -math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True)),
    ),
}
LOSSES = {name: loss for name, (loss, _) in REFERENCES.items()}
DIVERGENCES = {name: loss for name, loss in LOSSES.items() if name != "soft_cross_entropy"}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_divergence = pytest.mark.parametrize("loss", DIVERGENCES.values(), ids=DIVERGENCES)
STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)


def sparse(teacher, k=3):
    """Top k of float64 logits, kept in float64 (``from_dense`` stores float32)."""
    log_probs = teacher.log_softmax(-1)
    values, indices = log_probs.topk(k)
    rest = torch.from_numpy(special.logsumexp(np.sort(log_probs.numpy())[:, : teacher.shape[-1] - k], axis=-1))
    return SparseLogits(values, indices, rest, teacher.shape[-1])


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_agrees_with_plain_sums(name, temperature):
    loss, reference = REFERENCES[name]
    got = loss(STUDENT, TEACHER, temperature=temperature, scale="none", reduction="none")
    want = [
        reference(probabilities(s, temperature), probabilities(t, temperature))
        for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    squared = loss(STUDENT, TEACHER, temperature=temperature, scale="squared", reduction="none")
    torch.testing.assert_close(squared, got * temperature**2)


def test_directions_by_hand():
    student = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log() + 3.0
    skewed = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64).log()
    assert d.forward_kl(student, teacher).item() == pytest.approx(0.25 * math.log(2))
    assert d.forward_kl(student, skewed).item() == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    assert d.reverse_kl(student, skewed).item() == pytest.approx(0.5 * math.log(0.625) + 0.5 * math.log(2.5))
    assert d.total_variation(student, skewed).item() == pytest.approx(0.3)


def test_defaults_of_the_temperature_factor():
    tempered = {name: loss(STUDENT, TEACHER, temperature=2.0) for name, loss in LOSSES.items()}
    plain = {name: loss(STUDENT, TEACHER, temperature=2.0, scale="none") for name, loss in LOSSES.items()}
    for name in LOSSES:
        factor = 1.0 if name in ("total_variation", "soft_cross_entropy") else 4.0
        torch.testing.assert_close(tempered[name], plain[name] * factor)


def test_temperatures_of_the_two_sides_and_of_rows():
    sharp = d.forward_kl(STUDENT, TEACHER, temperature=2.0, teacher_temperature=0.5, scale="none")
    torch.testing.assert_close(sharp, d.forward_kl(STUDENT / 2, TEACHER * 2))
    per_row = torch.linspace(0.5, 4.0, 8, dtype=torch.float64)
    rows = d.forward_kl(STUDENT, TEACHER, temperature=per_row, reduction="none")
    for i in range(8):
        single = d.forward_kl(STUDENT[i : i + 1], TEACHER[i : i + 1], temperature=per_row[i].item())
        torch.testing.assert_close(rows[i], single)


def test_a_learned_temperature_gets_its_gradient():
    per_row = torch.linspace(0.5, 4.0, 4, dtype=torch.float64, requires_grad=True)
    for loss in LOSSES.values():
        assert torch.autograd.gradcheck(
            lambda t, loss=loss: loss(STUDENT[:4], TEACHER[:4], temperature=t, reduction="none"), (per_row,)
        )


def test_soft_cross_entropy_is_forward_kl_plus_entropy():
    cross = d.soft_cross_entropy(STUDENT, TEACHER, temperature=2.0, teacher_temperature=3.0, reduction="none")
    divergence = d.forward_kl(
        STUDENT, TEACHER, temperature=2.0, teacher_temperature=3.0, scale="none", reduction="none"
    )
    torch.testing.assert_close(cross, divergence + d.entropy(TEACHER, temperature=3.0, reduction="none"))


def test_entropy_agrees_with_scipy():
    want = stats.entropy(special.softmax(TEACHER.numpy() / 1.7, axis=-1), axis=-1)
    torch.testing.assert_close(d.entropy(TEACHER, temperature=1.7, reduction="none"), torch.from_numpy(want))
    check.check_contract(d.entropy, TEACHER)
    check.check_gradient(d.entropy, TEACHER)
    check.check_half(d.entropy, check.extreme_logits()[0])
    check.check_shift(d.entropy, TEACHER, places=(0,))
    padded = torch.cat([TEACHER, torch.full((8, 1), -INF)], -1)
    value, grad = check.gradient(d.entropy, padded)
    torch.testing.assert_close(value, d.entropy(TEACHER))
    assert torch.isfinite(grad).all()


def test_mixtures_tend_to_the_two_kls():
    options = {"reduction": "none"}
    forward, reverse = d.forward_kl(STUDENT, TEACHER, **options), d.reverse_kl(STUDENT, TEACHER, **options)
    small = 1e-7
    torch.testing.assert_close(
        d.jensen_shannon(STUDENT, TEACHER, beta=small, **options) / small, forward, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        d.jensen_shannon(STUDENT, TEACHER, beta=1 - small, **options) / small, reverse, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(d.skewed_kl(STUDENT, TEACHER, alpha=0.0, **options), forward)
    torch.testing.assert_close(d.skewed_reverse_kl(STUDENT, TEACHER, alpha=0.0, **options), reverse)


def test_bounds_where_the_sides_do_not_overlap():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert d.jensen_shannon(student, teacher).item() == pytest.approx(math.log(2))
    assert d.skewed_kl(student, teacher, alpha=0.1).item() == pytest.approx(-math.log(0.1))
    assert d.skewed_reverse_kl(student, teacher, alpha=0.1).item() == pytest.approx(-math.log(0.1))
    assert d.total_variation(student, teacher).item() == pytest.approx(1.0)
    assert d.forward_kl(student, teacher).item() == pytest.approx(1e4)


@every_loss
def test_gradient(loss):
    check.check_gradient(partial(loss, temperature=2.0), STUDENT[:4], TEACHER[:4], wrt=(0, 1))


@every_loss
def test_contract(loss):
    check.check_contract(loss, STUDENT, TEACHER)
    check.check_leading_axes(loss, STUDENT, TEACHER)
    check.check_shift(loss, STUDENT, TEACHER)


@every_divergence
def test_zero_at_match(loss):
    check.check_zero_at_match(partial(loss, temperature=2.0), STUDENT, STUDENT)


def test_soft_cross_entropy_has_no_gradient_at_match():
    assert check.gradient(d.soft_cross_entropy, STUDENT, STUDENT)[1].abs().max() < 1e-12


def test_total_variation_gradient_is_exactly_zero_at_ties():
    """A sign function that gives +1 at ties would push a student that already agrees (Liger-Kernel#1373)."""
    for dtype in (torch.float32, *check.HALF_TYPES):
        student = STUDENT.to(dtype)
        grad = check.gradient(d.total_variation, student, student)[1]
        assert torch.equal(grad, torch.zeros_like(grad))


@every_loss
def test_finite_in_half_precision(loss):
    student, teacher = check.extreme_logits()
    check.check_half(loss, student, teacher)
    check.check_half(partial(loss, temperature=4.0), student, teacher)


@every_loss
def test_padded_vocabulary(loss):
    """Classes at -inf on both sides change neither value nor gradient."""
    padding = torch.full((8, 3), -INF, dtype=torch.float64)
    value, grad = check.gradient(loss, STUDENT, TEACHER)
    padded_value, padded_grad = check.gradient(
        loss, torch.cat([STUDENT, padding], -1), torch.cat([TEACHER, padding], -1)
    )
    torch.testing.assert_close(padded_value, value)
    torch.testing.assert_close(padded_grad[:, :6], grad)
    assert torch.equal(padded_grad[:, 6:], torch.zeros(8, 3, dtype=torch.float64))


def test_ruled_out_by_one_side_only():
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[:, 0] = -INF
    assert d.forward_kl(student, teacher).item() == INF
    assert torch.isfinite(d.reverse_kl(student, teacher))
    for bounded in (d.jensen_shannon, d.skewed_kl, d.skewed_reverse_kl, d.total_variation):
        value, grad = check.gradient(bounded, student, teacher)
        assert torch.isfinite(value), bounded
        assert torch.isfinite(grad).all(), bounded


def test_nan_stays_visible():
    teacher = TEACHER.clone()
    teacher[0] = float("nan")
    for name, loss in LOSSES.items():
        assert loss(STUDENT, teacher).isnan(), name


@every_loss
def test_sparse_teacher_equals_dense_on_merged_outcomes(loss):
    """Top 3 and the rest as a fourth outcome, merged here by numpy on probabilities."""
    top = np.argsort(-TEACHER.numpy(), axis=-1)[:, :3]
    merged = []
    for side in (STUDENT, TEACHER):
        p = special.softmax(side.numpy(), axis=-1)
        kept = np.take_along_axis(p, top, -1)
        merged.append(torch.from_numpy(np.log(np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1))))
    for temperature in (1.0, 2.0):
        got = loss(STUDENT, sparse(TEACHER), temperature=temperature, reduction="none")
        torch.testing.assert_close(got, loss(*merged, temperature=temperature, reduction="none"))


@every_loss
def test_sparse_teacher_contract(loss):
    teacher = sparse(TEACHER)
    check.check_contract(loss, STUDENT, teacher)
    check.check_leading_axes(loss, STUDENT, teacher)
    check.check_gradient(lambda s, **o: loss(s, teacher, **o), STUDENT)
    full = sparse(TEACHER, 6)
    torch.testing.assert_close(loss(STUDENT, full), loss(STUDENT, TEACHER))
    student, extreme = check.extreme_logits(6)
    check.check_half(loss, student, SparseLogits.from_dense(extreme, 2))
    padding = torch.full((8, 3), -INF, dtype=torch.float64)
    assert torch.isfinite(check.gradient(loss, torch.cat([STUDENT, padding], -1), SparseLogits(*_widen(full)))[1]).all()


def _widen(teacher):
    """The same teacher over a vocabulary padded by three classes: nothing is left for the rest."""
    return teacher.values, teacher.indices, torch.full_like(teacher.rest, -INF), teacher.size + 3


@every_divergence
def test_sparse_teacher_zero_at_match_and_below_dense(loss):
    check.check_zero_at_match(partial(loss, temperature=2.0), TEACHER, sparse(TEACHER))
    coarse = loss(STUDENT, sparse(TEACHER), reduction="none")
    dense = loss(STUDENT, TEACHER, reduction="none")
    assert (coarse <= dense + 1e-12).all()
    assert (coarse > 0).all()


def test_rest_of_a_sure_student_is_summed_not_subtracted():
    """The student's rest is e^-40, which 1 - sum(kept) would round to 0 or below."""
    student = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    teacher = SparseLogits(torch.tensor([[0.0]]), torch.tensor([[0]]), torch.tensor([-40.0]), 4)
    value, grad = check.gradient(d.reverse_kl, student, teacher)
    assert torch.isfinite(grad).all()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert d.coarsen(student, teacher)[0][0, 1].item() == pytest.approx(-40 + math.log(3), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-60, 60, width=32)] * 2), min_size=2, max_size=6))
def test_non_negative_and_finite(pairs):
    student, teacher = torch.tensor(pairs, dtype=torch.float64).T.unsqueeze(1)
    for name, loss in DIVERGENCES.items():
        value, grad = check.gradient(loss, student, teacher)
        assert value.item() >= -1e-12, name
        assert torch.isfinite(grad).all(), name


def test_errors_name_the_argument():
    cases = [
        ("teacher_logits", lambda: d.forward_kl(STUDENT, TEACHER[:, :5])),
        ("teacher_logits", lambda: d.forward_kl(STUDENT[:, :5], sparse(TEACHER))),
        ("temperature", lambda: d.forward_kl(STUDENT, TEACHER, temperature=0.0)),
        ("teacher_temperature", lambda: d.forward_kl(STUDENT, TEACHER, teacher_temperature=-1.0)),
        ("scale", lambda: d.forward_kl(STUDENT, TEACHER, scale="T2")),
        ("reduction", lambda: d.forward_kl(STUDENT, TEACHER, reduction="batchmean")),
        ("beta", lambda: d.jensen_shannon(STUDENT, TEACHER, beta=1.0)),
        ("alpha", lambda: d.skewed_kl(STUDENT, TEACHER, alpha=1.0)),
        ("mask", lambda: d.forward_kl(STUDENT, TEACHER, mask=torch.ones(8))),
        ("mask", lambda: d.forward_kl(STUDENT, TEACHER, mask=torch.ones(6, dtype=torch.bool))),
        (
            "mask",
            lambda: d.forward_kl(STUDENT.expand(6, 8, 6), TEACHER.expand(6, 8, 6), mask=torch.ones(8).bool()),
        ),
    ]
    for key, call in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.key == key


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_historical_reduction_is_the_mean_over_rows_and_classes(temperature):
    old = torch.nn.functional.kl_div(
        (STUDENT / temperature).log_softmax(-1), (TEACHER / temperature).softmax(-1), reduction="mean"
    )
    given = d.forward_kl(STUDENT, TEACHER, temperature=temperature, per_row="mean", scale="none")
    torch.testing.assert_close(given, old)
    whole = d.forward_kl(STUDENT, TEACHER, temperature=temperature, scale="none")
    torch.testing.assert_close(given * STUDENT.shape[-1], whole)
    with pytest.raises(UserError, match="per_row"):
        d.forward_kl(STUDENT, TEACHER, per_row="batchmean")
