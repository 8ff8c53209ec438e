"""Samplers: from noise to a sample in a few network calls.

Every sampler carries the sample as the network sees it, ``x = alpha_t x0 + sigma_t eps``, so that one loop fits all:

    state = sampler.begin()
    x = sampler.start(noise)
    for index in range(len(sampler)):
        output = denoiser(sampler.model_input(state, x, index), sampler.time(index), condition)
        x = sampler.step(state, x, output, index)

What a sampler remembers between steps is in ``state``, never in the sampler: one object serves any number of
trajectories.

| sampler | order | calls per step | source |
|---|---|---|---|
| :class:`DDIM` | 1 | 1 | Song et al., 2021; ``eta`` 1 is DDPM's variance |
| :class:`Euler` | 1 | 1 | the same curve as DDIM with ``eta`` 0, written as an ODE |
| :class:`DPMSolverPP` | 2 | 1 | Lu et al., 2022, the multistep form 2M |
| :class:`Heun` | 2 | 2 | Karras et al., 2022 |
| :class:`FromDiffusers` | any | 1 | a scheduler of diffusers, in its own coordinates |
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Condition, Denoiser
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.noise import PREDICTIONS
from limbeck.errors import UserError

Watch = Callable[[int, Tensor], None]


class Sampler(ABC):
    """See the module.

    Args:
        grid: times and noise levels.
        prediction: what the network predicts, ``eps``, ``x0`` or ``v``.
    """

    calls_per_step: ClassVar[int] = 1

    def __init__(self, grid: Grid, *, prediction: str = "eps") -> None:
        if prediction not in PREDICTIONS:
            raise UserError("prediction", prediction, PREDICTIONS)
        if prediction == "v" and not grid.unit:
            raise UserError("prediction", "v", "eps or x0 on this grid: v needs alpha^2 + sigma^2 = 1")
        if prediction == "eps" and bool((grid.alpha == 0).any()):
            raise UserError("prediction", "eps", "x0 or v: no signal is left at the first step (zero terminal SNR)")
        self.grid, self.prediction = grid, prediction

    def __len__(self) -> int:
        return len(self.grid)

    def time(self, index: int) -> Tensor:
        """The network's time of a step, a scalar."""
        return self.grid.times[index]

    def begin(self) -> Any:
        """A fresh state of one trajectory."""
        return {}

    def start(self, noise: Tensor) -> Tensor:
        """The first x: the noise itself, or as much of it as the grid's first level has."""
        return noise if self.grid.unit else noise * float(self.grid.sigma[0])

    def model_input(self, state: Any, x: Tensor, index: int) -> Tensor:
        """What the network sees of x."""
        return x

    @abstractmethod
    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """The x of the next step, from the network's output at this one."""

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = None,
        *,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Run all steps.

        Args:
            denoiser: see :class:`~limbeck.diffusion.denoiser.Denoiser`; usually a ``Guided`` one.
            noise: ``[B, ...]``, unit normal.
            generator: of the noise that stochastic samplers draw.
            watch: called with the index and x before every step.
        """
        state, x = self.begin(), self.start(noise)
        for index in range(len(self)):
            if watch is not None:
                watch(index, x)
            output = denoiser(self.model_input(state, x, index), self.time(index).to(x.device), condition)
            x = self.step(state, x, output, index, generator)
        return x

    def split(self, x: Tensor, output: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """(x0, eps) that the output stands for."""
        alpha, sigma = float(self.grid.alpha[index]), float(self.grid.sigma[index])
        if self.prediction == "eps":
            return (x - sigma * output) / alpha, output
        if self.prediction == "x0":
            return output, (x - alpha * output) / sigma
        return alpha * x - sigma * output, sigma * x + alpha * output


class DDIM(Sampler):
    """``x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z``, with ``s = eta (sigma'/sigma) sqrt(1 - alpha^2/alpha'^2)``.

    Args:
        eta: 0 is deterministic, 1 has DDPM's posterior variance.
        clip: bound on |x0|; eps stays as predicted, as in diffusers.
    """

    def __init__(self, grid: Grid, *, prediction: str = "eps", eta: float = 0.0, clip: float | None = None) -> None:
        super().__init__(grid, prediction=prediction)
        if eta < 0 or (eta > 0 and not grid.unit):
            raise UserError("eta", eta, "0, or more on a grid with alpha^2 + sigma^2 = 1")
        self.eta, self.clip = eta, clip

    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :class:`Sampler`."""
        x0, eps = self.split(x, output, index)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        (alpha, alpha_next), (sigma, sigma_next) = _pair(self.grid.alpha, index), _pair(self.grid.sigma, index)
        spread = self.eta * sigma_next / sigma * max(0.0, 1 - (alpha / alpha_next) ** 2) ** 0.5
        moved: Tensor = alpha_next * x0 + max(0.0, sigma_next**2 - spread**2) ** 0.5 * eps
        if spread > 0:
            moved = moved + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return moved


class Euler(Sampler):
    """One step along ``d(x / alpha) / d(sigma / alpha) = eps``."""

    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :class:`Sampler`."""
        _, eps = self.split(x, output, index)
        return self.move(x, eps, index)

    def move(self, x: Tensor, slope: Tensor, index: int) -> Tensor:
        """x at the next point of the grid, along ``slope``."""
        (alpha, alpha_next), (sigma, sigma_next) = _pair(self.grid.alpha, index), _pair(self.grid.sigma, index)
        if alpha == 0:
            raise UserError("sampler", type(self).__name__, "DDIM where no signal is left (zero terminal SNR)")
        moved: Tensor = alpha_next * (x / alpha + (sigma_next / alpha_next - sigma / alpha) * slope)
        return moved


class Heun(Euler):
    """Euler, then once more with the mean of the slopes at both ends; the last step to sigma 0 is Euler's.

    Two network calls a step: outputs of several steps cannot be made at once, so :meth:`step` is refused.
    """

    calls_per_step = 2

    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Refused: a step needs the denoiser itself."""
        raise UserError("sampler", "Heun", "DDIM, Euler or DPMSolverPP: Heun calls the network twice a step")

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = None,
        *,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """See :class:`Sampler`."""
        x = self.start(noise)
        for index in range(len(self)):
            if watch is not None:
                watch(index, x)
            x = self.corrected(denoiser, x, condition, index)
        return x

    def corrected(self, denoiser: Denoiser, x: Tensor, condition: Condition, index: int) -> Tensor:
        """One whole step."""
        _, first = self.split(x, denoiser(x, self.time(index).to(x.device), condition), index)
        ahead = self.move(x, first, index)
        if index + 1 == len(self):
            return ahead
        _, second = self.split(ahead, denoiser(ahead, self.time(index + 1).to(x.device), condition), index + 1)
        return self.move(x, (first + second) / 2, index)


class DPMSolverPP(Sampler):
    """DPM-Solver++(2M): linear extrapolation of x0 in lambda = log(alpha / sigma).

    ``x' = (sigma'/sigma) x - alpha' (e^-h - 1) (D0 + D1 / 2)``, ``D1 = (h / h_before) (x0 - x0_before)``; first order
    at the first step, and at the last one if it ends at sigma 0 (where it gives x0).
    """

    def begin(self) -> Any:
        """The last x0."""
        return {"before": None}

    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :class:`Sampler`."""
        x0, _ = self.split(x, output, index)
        before, state["before"] = state["before"], x0
        (_, alpha_next), (sigma, sigma_next) = _pair(self.grid.alpha, index), _pair(self.grid.sigma, index)
        if sigma_next == 0:
            return x0 * alpha_next
        logs = (self.grid.alpha.log() - self.grid.sigma.log()).tolist()
        ahead = logs[index + 1] - logs[index]
        direction = x0
        if before is not None and logs[index] - logs[index - 1] < float("inf"):
            direction = x0 + 0.5 * ahead / (logs[index] - logs[index - 1]) * (x0 - before)
        growth = float(torch.expm1(torch.tensor(-ahead, dtype=torch.float64)))
        return sigma_next / sigma * x - alpha_next * growth * direction


class FromDiffusers(Sampler):
    """A scheduler of diffusers, stepped in its own coordinates on a copy per trajectory.

    Args:
        scheduler: with ``set_timesteps``, ``scale_model_input`` and ``step``; it is not changed.
        steps: number of steps.

    Raises:
        UserError: the scheduler calls the network more than once a step (order above 1, such as Heun's).
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        self._scheduler.set_timesteps(steps)
        if getattr(self._scheduler, "order", 1) != 1 or len(self._scheduler.timesteps) != steps:
            raise UserError("scheduler", type(scheduler).__name__, "one that calls the network once a step")
        self._times: Tensor = self._scheduler.timesteps

    def __len__(self) -> int:
        return len(self._times)

    def time(self, index: int) -> Tensor:
        """See :class:`Sampler`."""
        return self._times[index]

    def begin(self) -> Any:
        """A copy of the scheduler, which keeps its history in itself."""
        return copy.deepcopy(self._scheduler)

    def start(self, noise: Tensor) -> Tensor:
        """The noise at the scheduler's first level."""
        return noise * float(self._scheduler.init_noise_sigma)

    def model_input(self, state: Any, x: Tensor, index: int) -> Tensor:
        """As the scheduler scales it."""
        scaled: Tensor = state.scale_model_input(x, self.time(index))
        return scaled

    def step(
        self, state: Any, x: Tensor, output: Tensor, index: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :class:`Sampler`."""
        import inspect

        takes = inspect.signature(state.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        moved: Tensor = state.step(output, self.time(index), x, **extra, return_dict=False)[0]
        return moved


def _pair(table: Tensor, index: int) -> tuple[float, float]:
    return float(table[index]), float(table[index + 1])
