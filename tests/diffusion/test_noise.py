from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from limbeck.diffusion.noise import PREDICTIONS, DiscreteSchedule, EDMSchedule, prediction_of
from limbeck.errors import UserError

SCHEDULES = {
    "linear": (DiscreteSchedule.linear(), {}),
    "scaled_linear": (
        DiscreteSchedule.scaled_linear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (DiscreteSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_those_of_diffusers(name: str) -> None:
    ours, settings = SCHEDULES[name]
    theirs = DDPMScheduler(**settings)
    torch.testing.assert_close(ours.abar, theirs.alphas_cumprod, rtol=2e-5, atol=1e-8)
    torch.testing.assert_close(DiscreteSchedule.from_diffusers(theirs).abar, theirs.alphas_cumprod)


def test_zero_terminal_is_that_of_diffusers() -> None:
    theirs = DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear")
    ours = DiscreteSchedule.scaled_linear(start=1e-4, end=0.02).zero_terminal()
    torch.testing.assert_close(ours.abar, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert float(ours.abar[-1]) == 0


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    theirs, ours = DDPMScheduler(), DiscreteSchedule.linear()
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 500, 900, 999])
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.target(x0, noise, t, "v"), theirs.get_velocity(x0, noise, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("given", "wanted"), product(PREDICTIONS, PREDICTIONS))
def test_every_prediction_says_the_same(given: str, wanted: str) -> None:
    schedule = DiscreteSchedule(DiscreteSchedule.scaled_linear().abar.double())
    x0, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([1, 300, 700, 999])
    x = schedule.add_noise(x0, noise, t)
    by_hand = {
        "x0": x0,
        "eps": noise,
        "v": schedule.alpha(t)[:, None] * noise - schedule.sigma(t)[:, None] * x0,
    }
    made = schedule.convert(by_hand[given], x, t, given, wanted)
    torch.testing.assert_close(made, by_hand[wanted], rtol=1e-9, atol=1e-9)


def test_times_between_two_numbers() -> None:
    schedule = DiscreteSchedule.linear()
    whole = schedule.alpha(torch.tensor([3, 999]))
    assert torch.equal(schedule.alpha(torch.tensor([3.0, 999.0])), whole)
    between = schedule.snr(torch.tensor([2.5])).log()
    ends = schedule.snr(torch.tensor([2, 3])).log()
    torch.testing.assert_close(between, ends.mean(0, keepdim=True), rtol=1e-4, atol=1e-4)


def test_edm_preconditioning_by_its_conditions() -> None:
    # c_in gives the input unit variance, c_out the target, and c_skip makes c_out smallest (appendix B.6).
    schedule, sigma = EDMSchedule(data=0.7), torch.tensor([0.01, 0.7, 30.0], dtype=torch.float64)
    made = schedule.preconditioning(sigma)
    torch.testing.assert_close(made["in"] ** 2 * (0.49 + sigma**2), torch.ones(3, dtype=torch.float64))
    error = (1 - made["skip"]) ** 2 * 0.49 + made["skip"] ** 2 * sigma**2
    torch.testing.assert_close(made["out"] ** 2, error)
    torch.testing.assert_close(made["skip"], 0.49 / (0.49 + sigma**2))
    torch.testing.assert_close(schedule.loss_weight(sigma), 1 / made["out"] ** 2)
    assert made["noise"][2] == math.log(30.0) / 4
    assert float(schedule.karras(torch.tensor(0.0))) == pytest.approx(80.0)
    assert float(schedule.karras(torch.tensor(1.0))) == pytest.approx(0.002)


def test_edm_adds_noise_to_an_unscaled_signal() -> None:
    x0, noise = torch.ones(2, 3), torch.full((2, 3), 2.0)
    made = EDMSchedule().add_noise(x0, noise, torch.tensor([0.5, 3.0]))
    assert made.tolist() == [[2.0] * 3, [7.0] * 3]


def test_what_cannot_be_converted_is_refused() -> None:
    schedule, x = DiscreteSchedule.linear(), torch.zeros(1, 2)
    with pytest.raises(UserError, match="prediction"):
        schedule.convert(x, x, 5, "noise", "x0")
    with pytest.raises(UserError, match="alpha"):
        schedule.zero_terminal().convert(x, x, torch.tensor([999]), "eps", "x0")
    assert torch.equal(schedule.zero_terminal().convert(x, x + 1, torch.tensor([999]), "v", "eps"), x + 1)
    with pytest.raises(UserError, match="v"):
        EDMSchedule().convert(x, x, 1.0, "v", "x0")
    with pytest.raises(UserError, match="sigma"):
        EDMSchedule().convert(x, x, 0.0, "x0", "eps")
    with pytest.raises(UserError, match="0 to 999"):
        schedule.alpha(torch.tensor([1000]))
    with pytest.raises(UserError, match="one time per sample"):
        schedule.add_noise(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([1, 2]))
    with pytest.raises(UserError, match="falling"):
        DiscreteSchedule(torch.tensor([0.2, 0.5]))


def test_words_of_diffusers() -> None:
    assert prediction_of(DDPMScheduler(prediction_type="v_prediction")) == "v"


def test_v_is_a_target_also_where_no_signal_is_left() -> None:
    schedule = DiscreteSchedule.scaled_linear().zero_terminal()
    x0, noise = torch.ones(1, 2), torch.full((1, 2), 3.0)
    torch.testing.assert_close(schedule.target(x0, noise, 999, "v"), -x0)
