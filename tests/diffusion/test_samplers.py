from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from limbeck.diffusion.analytic import MixtureDenoiser
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.noise import DiscreteSchedule, EDMSchedule
from limbeck.diffusion.samplers import DDIM, DPMSolverPP, Euler, FromDiffusers, Heun, Sampler
from limbeck.errors import UserError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = DiscreteSchedule.scaled_linear()


def noise(seed: int = 0) -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
    """No denoiser, but one whose output depends on x and t, which is what the steps must agree on."""
    return torch.tanh(1.3 * x + 0.2 * torch.roll(x, 1, -1) + torch.as_tensor(t, dtype=x.dtype) / 1000)


def theirs(scheduler: Any, x: Tensor, steps: int, generator: torch.Generator | None = None, **options: Any) -> Tensor:
    """The usual loop of diffusers."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t)
        extra = {"generator": generator} if generator is not None else {}
        x = scheduler.step(output, t, x, **options, **extra).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_that_of_diffusers(prediction: str, eta: float, spacing: str) -> None:
    offset = 1 if spacing == "leading" else 0
    name = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    scheduler = DDIMScheduler(
        **SD,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=offset,
        timestep_spacing=spacing,
        prediction_type=name,
    )
    grid = Grid.spaced(SCHEDULE, 20, spacing=spacing, offset=offset, last="first")
    sampler = DDIM(grid, prediction=prediction, eta=eta)
    ours = sampler.sample(network, noise(), generator=torch.Generator().manual_seed(5))
    wanted = theirs(scheduler, noise(), 20, torch.Generator().manual_seed(5), eta=eta)
    torch.testing.assert_close(ours, wanted, rtol=2e-4, atol=2e-5)


def test_ddim_clips_as_diffusers_does() -> None:
    scheduler = DDIMScheduler(**SD, clip_sample=True, set_alpha_to_one=True)
    ours = DDIM(Grid.spaced(SCHEDULE, 10), clip=1.0).sample(network, noise())
    torch.testing.assert_close(ours, theirs(scheduler, noise(), 10), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_is_that_of_diffusers(spacing: str) -> None:
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
    scheduler.set_timesteps(20)
    sampler = Euler(Grid.at(SCHEDULE, scheduler.timesteps.double()))
    # Theirs is kept in x / alpha.
    ours = sampler.sample(network, noise())
    wanted = theirs(scheduler, noise() / float(sampler.grid.alpha[0]), 20)
    torch.testing.assert_close(ours, wanted, rtol=2e-4, atol=2e-5)


def test_heun_is_that_of_diffusers() -> None:
    scheduler = HeunDiscreteScheduler(**SD, timestep_spacing="trailing")
    sampler = Heun(Grid.spaced(SCHEDULE, 10, spacing="trailing"))
    ours = sampler.sample(network, noise())
    wanted = theirs(scheduler, noise() / float(sampler.grid.alpha[0]), 10)
    torch.testing.assert_close(ours, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_solver_is_that_of_diffusers(spacing: str, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**SD, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    ours = DPMSolverPP(Grid.at(SCHEDULE, scheduler.timesteps)).sample(network, noise())
    torch.testing.assert_close(ours, theirs(scheduler, noise(), steps), rtol=2e-4, atol=2e-5)


def test_a_scheduler_of_diffusers_is_a_sampler() -> None:
    scheduler = EulerDiscreteScheduler(**SD)
    adapter = FromDiffusers(scheduler, 7)
    wanted = theirs(EulerDiscreteScheduler(**SD), noise() * float(adapter.start(torch.ones(()))), 7)
    for _ in range(2):
        # Twice: nothing of the first trajectory may be left in the second.
        assert torch.equal(adapter.sample(network, noise()), wanted)
    assert scheduler.num_inference_steps is None
    with pytest.raises(UserError, match="once a step"):
        FromDiffusers(HeunDiscreteScheduler(**SD), 7)


def test_ddim_without_eta_is_euler() -> None:
    grid = Grid.spaced(SCHEDULE, 12)
    torch.testing.assert_close(DDIM(grid).sample(network, noise()), Euler(grid).sample(network, noise()))


def gaussian(schedule: Any, prediction: str = "eps") -> MixtureDenoiser:
    mean = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    return MixtureDenoiser(schedule, mean, 0.5, prediction=prediction)


def exact(denoiser: MixtureDenoiser, grid: Grid, x: Tensor) -> Tensor:
    """End of the probability flow: (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays what it is."""

    def level(index: int) -> tuple[float, float]:
        alpha, sigma = float(grid.alpha[index]), float(grid.sigma[index])
        return alpha, (alpha**2 * 0.25 + sigma**2) ** 0.5

    (first, before), (last, after) = level(0), level(-1)
    return last * denoiser.means + after * (x - first * denoiser.means) / before


FINE = DiscreteSchedule(DiscreteSchedule.scaled_linear().abar.double())


@pytest.mark.parametrize(("kind", "order"), [(DDIM, 1), (Euler, 1), (DPMSolverPP, 2), (Heun, 2)])
def test_order_of_convergence_on_a_gaussian(kind: type[Sampler], order: int) -> None:
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (40, 80):
        # An end well above sigma 0, where the exact solution is smooth.
        whole = Grid.at(FINE, torch.linspace(999, 100, steps + 1, dtype=torch.float64))
        sampler = kind(Grid(whole.times[:-1], whole.alpha[:-1], whole.sigma[:-1], unit=True))
        denoiser = gaussian(FINE)
        errors.append(float((sampler.sample(denoiser, start) - exact(denoiser, sampler.grid, start)).abs().max()))
    assert errors[1] < errors[0] / 2**order * 1.2
    assert errors[1] < 0.1 / 10 ** (order - 1)


@pytest.mark.parametrize("kind", [Heun, Euler, DPMSolverPP, DDIM])
def test_edm_grid_and_denoiser(kind: type[Sampler]) -> None:
    schedule = EDMSchedule()
    denoiser = gaussian(schedule, "x0")
    sampler = kind(Grid.karras(schedule, 60), prediction="x0")
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sampler.sample(denoiser, start)
    wanted = exact(denoiser, sampler.grid, sampler.start(start))
    assert float((found - wanted).abs().max()) < (0.1 if kind in (Euler, DDIM) else 0.01)
    assert float(sampler.start(start).std()) > 70


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("kind", [DDIM, Euler, DPMSolverPP, Heun])
def test_predictions_give_the_same_samples(kind: type[Sampler], prediction: str) -> None:
    grid = Grid.spaced(FINE, 15)
    start = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_eps = kind(grid).sample(gaussian(FINE), start)
    torch.testing.assert_close(kind(grid, prediction=prediction).sample(gaussian(FINE, prediction), start), by_eps)


def test_full_noise_in_ddim_restores_the_spread() -> None:
    denoiser = gaussian(FINE)
    start = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = DDIM(Grid.spaced(FINE, 500), eta=1.0).sample(denoiser, start, generator=torch.Generator().manual_seed(1))
    assert float(made.std(0).mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.allclose(made.mean(0), denoiser.means[0], atol=0.03)


def test_grids() -> None:
    assert Grid.spaced(SCHEDULE, 4).times.tolist() == [750, 500, 250, 0]
    assert Grid.spaced(SCHEDULE, 4, offset=1).times.tolist() == [751, 501, 251, 1]
    assert Grid.spaced(SCHEDULE, 4, spacing="trailing").times.tolist() == [999, 749, 499, 249]
    assert Grid.spaced(SCHEDULE, 4, spacing="linspace").times.tolist() == [999, 666, 333, 0]
    assert float(Grid.spaced(SCHEDULE, 4).sigma[-1]) == 0
    assert float(Grid.spaced(SCHEDULE, 4, last="first").sigma[-1]) == pytest.approx(float(SCHEDULE.sigma(0)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Grid.spaced(SCHEDULE, 0),
        lambda: Grid.spaced(SCHEDULE, 1001),
        lambda: Grid.spaced(SCHEDULE, 4, spacing="even"),
        lambda: Grid.at(SCHEDULE, torch.tensor([1, 5])),
        lambda: Grid.at(SCHEDULE, torch.tensor([5, 1]), last="zero"),
        lambda: DDIM(Grid.spaced(SCHEDULE.zero_terminal(), 4, spacing="trailing")),
        lambda: Euler(Grid.karras(EDMSchedule(), 4), prediction="v"),
        lambda: DDIM(Grid.karras(EDMSchedule(), 4), eta=1.0),
        lambda: Heun(Grid.spaced(SCHEDULE, 4)).step({}, noise(), noise(), 0),
    ],
)
def test_wrong_settings_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        wrong()


def test_watch_sees_every_step() -> None:
    seen: list[int] = []
    DDIM(Grid.spaced(SCHEDULE, 5)).sample(network, noise(), watch=lambda index, x: seen.append(index))
    assert seen == [0, 1, 2, 3, 4]
