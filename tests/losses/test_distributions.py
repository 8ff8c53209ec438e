"""Distances of distributions: double-precision references, what each can and cannot see, and the contract."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import distributions as d

from . import invariants as check

STUDENT = check.logits(6, 5, 3, seed=1, scale=0.7)
TEACHER = check.logits(6, 7, 3, seed=2, scale=0.7)
FREQUENCIES = check.logits(11, 3, seed=3, scale=1.0)
CHARACTERISTIC = {
    "even": lambda s, t, **o: d.characteristic_discrepancy(s, t, FREQUENCIES, **o),
    "uneven": partial(
        lambda s, t, **o: d.characteristic_discrepancy(s, t, FREQUENCIES, **o), amplitude_weight=0.8, phase_weight=0.3
    ),
    "amplitude": partial(
        lambda s, t, **o: d.characteristic_discrepancy(s, t, FREQUENCIES, **o), amplitude_weight=1.0, phase_weight=0.0
    ),
    "phase": partial(
        lambda s, t, **o: d.characteristic_discrepancy(s, t, FREQUENCIES, **o), amplitude_weight=0.0, phase_weight=1.0
    ),
}
EVERY = CHARACTERISTIC | {"means": d.mean_discrepancy, "mmd": partial(d.gaussian_mmd, bandwidth=0.8)}
every_loss = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)


def reference(student, teacher, t, alpha, beta):
    """NCFD by complex numbers and angles, as the paper writes it."""
    a, b = (np.exp(1j * x @ t.T).mean(axis=0) for x in (student, teacher))
    amplitude = (abs(a) - abs(b)) ** 2
    phase = 2 * abs(a) * abs(b) * (1 - np.cos(np.angle(a) - np.angle(b)))
    return np.sqrt(alpha * amplitude + beta * phase).mean()


@every_loss
def test_contract(loss):
    # A row is a group, and groups do not know each other.
    check.check_contract(loss, STUDENT, TEACHER, batchwise=False)
    check.check_leading_axes(loss, STUDENT, TEACHER)


@every_loss
def test_gradient(loss):
    # The floor rounds off the corner at equal phases, which finite differences would step across.
    options = {} if loss in (EVERY["means"], EVERY["mmd"]) else {"floor": 1e-3}
    check.check_gradient(loss, STUDENT[:2], TEACHER[:2], wrt=(0, 1), **options)


@every_loss
def test_zero_and_flat_where_both_hold_the_same(loss):
    check.check_zero_at_match(loss, STUDENT, STUDENT, tolerance=1e-7)
    value = loss(STUDENT.float(), STUDENT.flip(1).float())
    assert value.abs() < 1e-5, "the order of samples plays no part"


@every_loss
def test_half_precision(loss):
    check.check_half(loss, 1e3 * STUDENT, TEACHER)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.8, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_characteristic_agrees_with_complex_numbers(alpha, beta):
    found = d.characteristic_discrepancy(
        STUDENT, TEACHER, FREQUENCIES, amplitude_weight=alpha, phase_weight=beta, floor=1e-24, reduction="none"
    )
    expected = [reference(s.numpy(), t.numpy(), FREQUENCIES.numpy(), alpha, beta) for s, t in zip(STUDENT, TEACHER)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_the_fast_path_is_the_plain_one():
    fast = d.characteristic_discrepancy(STUDENT, TEACHER, FREQUENCIES)
    plain = d.characteristic_discrepancy(STUDENT, TEACHER, FREQUENCIES, phase_weight=0.5 + 1e-13)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=0)


def test_amplitude_and_phase_make_up_the_distance():
    a, b = (d.characteristic_function(x, FREQUENCIES) for x in (STUDENT, TEACHER))
    amplitude, phase = d.amplitude_and_phase(a, b, floor=1e-30)
    torch.testing.assert_close(amplitude + phase, (a[0] - b[0]).square() + (a[1] - b[1]).square())
    moved = d.characteristic_function(STUDENT + 0.3, FREQUENCIES)
    turned = d.amplitude_and_phase(a, moved, floor=1e-30)
    assert turned[0].max() < 1e-20, "a shift turns the phase and leaves the amplitude"
    assert turned[1].min() > 1e-6


def test_a_small_phase_survives_float32():
    samples = STUDENT[0].float()
    a, b = (d.characteristic_function(one, FREQUENCIES.float()) for one in (samples, samples + 1e-5))
    exact = (d.characteristic_function(one, FREQUENCIES) for one in (samples.double(), (samples + 1e-5).double()))
    _, phase = d.amplitude_and_phase(a, b)
    _, truth = d.amplitude_and_phase(*exact, floor=1e-30)
    torch.testing.assert_close(phase.double(), truth, rtol=0.2, atol=1e-13)


def test_frequencies_get_the_gradient_of_a_maximiser():
    frequencies = FREQUENCIES.clone().requires_grad_()
    value = d.characteristic_discrepancy(STUDENT, TEACHER, frequencies)
    (slope,) = torch.autograd.grad(value, frequencies)
    assert d.characteristic_discrepancy(STUDENT, TEACHER, frequencies + 0.05 * slope / slope.norm()) > value
    own = FREQUENCIES.expand(6, -1, -1)
    torch.testing.assert_close(d.characteristic_discrepancy(STUDENT, TEACHER, own), value.detach())


def test_gaussian_against_two_points_of_equal_mean_and_covariance():
    """The claim (a) of the paper, in two dimensions and with samples."""
    generator = torch.Generator().manual_seed(0)
    points = torch.where(torch.rand(20_000, 2, generator=generator) < 0.5, -1.0, 1.0)
    points = torch.cat([points, -points])
    normal = torch.randn(20_000, 2, generator=generator)
    normal = torch.cat([normal, -normal])
    normal = normal @ torch.linalg.inv(torch.linalg.cholesky(normal.T @ normal / len(normal))).T
    torch.testing.assert_close(normal.T @ normal / 40_000, points.T @ points / 40_000, atol=0.02, rtol=0)
    t = torch.randn(64, 2, generator=generator)
    assert d.mean_discrepancy(points, normal) < 1e-9
    assert d.characteristic_discrepancy(points, normal, t) > 0.1
    assert d.gaussian_mmd(points[:500], normal[:500]) > 0.01
    halves = d.characteristic_discrepancy(normal[::2], normal[1::2], t)
    assert halves < 0.02, "two halves of one sample are near each other"


def test_mmd_is_the_mean_square_over_gaussian_frequencies():
    t = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / 0.8
    a, b = (d.characteristic_function(x[0], t) for x in (STUDENT, TEACHER))
    expected = ((a[0] - b[0]).square() + (a[1] - b[1]).square()).mean()
    torch.testing.assert_close(d.gaussian_mmd(STUDENT[0], TEACHER[0], bandwidth=0.8), expected, rtol=0.01, atol=0)


def test_means_by_hand():
    ours, theirs = torch.tensor([[0.0, 2.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    assert d.mean_discrepancy(ours, theirs) == 1 + 4


def test_both_sets_are_alike_to_it_and_it_is_symmetric():
    for loss in EVERY.values():
        torch.testing.assert_close(loss(STUDENT, TEACHER), loss(TEACHER, STUDENT))


def test_no_infinite_slopes_where_the_function_vanishes():
    # Two opposite points: the characteristic function is cos(t), 0 at pi / 2, where |a| has a corner.
    points = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    t = torch.tensor([[math.pi / 2]])
    for weights in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
        value = d.characteristic_discrepancy(
            points, torch.zeros(1, 1), t, amplitude_weight=weights[0], phase_weight=weights[1]
        )
        (slope,) = torch.autograd.grad(value, points)
        assert torch.isfinite(slope).all()
        # Phase alone goes like the root of |b|: steep, within what the floor allows.
        assert slope.abs().max() < (2 if weights[0] else 1e3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.mean_discrepancy(STUDENT, TEACHER[..., :2]), "samples: given shapes"),
        (lambda: d.mean_discrepancy(STUDENT, TEACHER[:2]), "samples: given shapes"),
        (lambda: d.mean_discrepancy(STUDENT[:, :0], TEACHER), "samples: given shapes"),
        (lambda: d.characteristic_discrepancy(STUDENT, TEACHER, FREQUENCIES[:, :2]), "frequencies: given shape"),
        (lambda: d.characteristic_discrepancy(STUDENT, TEACHER, FREQUENCIES, phase_weight=-1), "amplitude_weight"),
        (lambda: d.gaussian_mmd(STUDENT, TEACHER, bandwidth=0), "bandwidth: given 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
