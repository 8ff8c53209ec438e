from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.diffusion.generators import Generator
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.errors import UserError

SCHEDULE = DiscreteSchedule.scaled_linear()


class Probe(nn.Module):
    """Remembers what it is asked; answers with a weight times x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.asked: list[tuple[Tensor, int, bool]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        self.asked.append((x.detach(), int(t[0]), torch.is_grad_enabled()))
        return self.weight * x


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_one_step_is_the_schedules_conversion_at_the_last_time(prediction: str) -> None:
    network = MLPDenoiser(2, 16, 2)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    made = Generator(network, SCHEDULE, prediction=prediction)
    output = network(z, torch.full((5,), 999), None)
    torch.testing.assert_close(made(z), SCHEDULE.x0(output, z, 999, prediction), rtol=1e-4, atol=1e-4)
    if prediction == "x0":
        assert torch.equal(made(z), output)


def test_a_constant_alpha_brings_its_sigma() -> None:
    probe = Probe()
    z = torch.ones(2, 3)
    made = Generator(probe, SCHEDULE, alpha=0.6)(z)
    torch.testing.assert_close(made, (z - 0.8 * 0.5 * z) / 0.6)


def test_steps_fall_evenly_and_begin_with_scaled_noise() -> None:
    probe = Probe()
    generator = Generator(probe, SCHEDULE, steps=4, start=625, prediction="x0", unit_noise=False)
    noise = torch.ones(2, 3)
    made = generator(noise, generator=torch.Generator().manual_seed(0))
    assert [t for _, t, _ in probe.asked] == [625, 468, 312, 156]
    torch.testing.assert_close(probe.asked[0][0], SCHEDULE.sigma(625) * noise)
    x = 0.5 * SCHEDULE.sigma(625) * noise
    draws = torch.Generator().manual_seed(0)
    for time in (468, 312, 156):
        x = 0.5 * SCHEDULE.add_noise(x, torch.randn(2, 3, generator=draws), time)
    torch.testing.assert_close(made, x)
    made.sum().backward()
    assert all(graded for *_, graded in probe.asked)


def test_only_the_drawn_step_carries_gradient() -> None:
    probe = Probe()
    generator = Generator(probe, SCHEDULE, steps=4, start=625, prediction="x0", unit_noise=False)
    noise = torch.randn(2, 3)
    for step in range(4):
        probe.asked.clear()
        made = generator.at(step, noise, generator=torch.Generator().manual_seed(0))
        assert [graded for *_, graded in probe.asked] == [False] * step + [True]
        (gradient,) = torch.autograd.grad(made.sum(), probe.weight)
        torch.testing.assert_close(gradient, probe.asked[-1][0].sum())
    whole = generator(noise, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator.at(3, noise, generator=torch.Generator().manual_seed(0)), whole)


def test_refusals() -> None:
    for options in (
        {"steps": 0},
        {"start": 1000},
        {"steps": 5, "start": 3},
        {"prediction": "noise"},
        {"alpha": 1.0},
        {"alpha": 0.0},
    ):
        with pytest.raises(UserError):
            Generator(Probe(), SCHEDULE, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="zero terminal"):
        Generator(Probe(), SCHEDULE.zero_terminal())
    Generator(Probe(), SCHEDULE.zero_terminal(), prediction="v")
    with pytest.raises(UserError, match="step"):
        Generator(Probe(), SCHEDULE, steps=2).at(2, torch.ones(1, 1))
