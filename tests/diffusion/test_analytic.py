from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.analytic import MixtureDenoiser, score_gap
from limbeck.diffusion.noise import DiscreteSchedule, EDMSchedule
from limbeck.errors import UserError

SCHEDULE = DiscreteSchedule(DiscreteSchedule.linear().abar.double())


def mixture(prediction: str = "eps") -> MixtureDenoiser:
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return MixtureDenoiser(
        SCHEDULE, means, torch.tensor([0.3, 0.6, 0.2]), weights=weights, classes=[0, 0, 1], prediction=prediction
    )


def test_score_is_the_gradient_of_the_density() -> None:
    denoiser, t = mixture(), torch.tensor([10, 300, 999])
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    for condition in (None, torch.tensor([0, 1, 2])):
        (gradient,) = torch.autograd.grad(denoiser.log_density(x, t, condition).sum(), x)
        torch.testing.assert_close(gradient, denoiser.score(x, t, condition))
        torch.testing.assert_close(-denoiser(x, t, condition) / SCHEDULE.sigma(t)[:, None], gradient)


def test_best_prediction_by_sampling() -> None:
    denoiser, generator = mixture("x0"), torch.Generator().manual_seed(0)
    clean = denoiser.sample(400_000, generator)
    t = 500
    noised = SCHEDULE.add_noise(clean, torch.randn(clean.shape, generator=generator, dtype=torch.float64), t)
    place = torch.tensor([0.3, 0.2], dtype=torch.float64)
    near = (noised - place).norm(dim=1) < 0.1
    found = denoiser(place[None], torch.tensor([t]))[0]
    assert torch.allclose(clean[near].mean(0), found, atol=0.08)


def test_conditions() -> None:
    denoiser = mixture()
    assert denoiser.null == 2
    x, t = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([400, 400])
    whole = denoiser(x, t)
    torch.testing.assert_close(denoiser(x, t, torch.tensor([2, 2])), whole)
    assert not torch.allclose(denoiser(x, t, torch.tensor([0, 1])), whole)
    with pytest.raises(UserError, match="condition"):
        denoiser(x, t, torch.tensor([0, 7]))
    made = denoiser.sample(500, torch.Generator().manual_seed(0), torch.ones(500, dtype=torch.long))
    assert torch.allclose(made.mean(0), torch.tensor([0.0, 3.0], dtype=torch.float64), atol=0.1)


def test_one_gaussian_by_hand() -> None:
    # x0 = m + s^2 / (s^2 + sigma^2) (x - m) with alpha = 1.
    denoiser = MixtureDenoiser(EDMSchedule(), torch.tensor([[1.0]]), 2.0, prediction="x0")
    assert float(denoiser(torch.tensor([[6.0]]), torch.tensor([1.0]))) == pytest.approx(5.0)


def test_the_score_gap_sees_the_wrong_place_spread_and_a_lost_mode() -> None:
    schedule = DiscreteSchedule.scaled_linear()
    teacher = MixtureDenoiser(schedule, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.2)
    generator = torch.Generator().manual_seed(0)
    true, times = teacher.sample(1500, generator), (200, 500)
    right = score_gap(true, teacher, times)
    assert right < 0.01
    worse = [score_gap(changed, teacher, times) for changed in (true + 0.3, 0.3 * true, true[true[:, 0] > 0])]
    assert min(worse) > 4 * right
    # Of one Gaussian it is known: eps_samples - eps_teacher = sigma alpha (m - m') / (alpha^2 s^2 + sigma^2).
    single = MixtureDenoiser(schedule, torch.zeros(1, 1), 1.0)
    moved = torch.randn(4000, 1, generator=generator) + 0.5
    alpha, sigma = schedule.alpha(500), schedule.sigma(500)
    assert score_gap(moved, single, (500,)) == pytest.approx(float((sigma * alpha * 0.5) ** 2), rel=0.15)
