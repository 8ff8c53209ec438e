"""Generators of one or a few steps: a denoiser's network that is asked for the clean sample directly.

One step    x = (z - sigma_T eps(z, T, c)) / alpha_T                    (of eps; of v: alpha_T z - sigma_T v)
K steps     t_i = floor(start (1 - i / K));   z_i = alpha_i D + sigma_i n_i;   D <- x0(z_i, t_i, c),   D = 0 at first

All steps share the network. Nothing is guided inside: guidance is distilled into the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Condition
from limbeck.diffusion.noise import PREDICTIONS, DiscreteSchedule
from limbeck.errors import UserError


class Generator(nn.Module):
    """See the module.

    Args:
        network: ``(x, t, condition) -> prediction``; usually a copy of the teacher, whose prediction at ``start`` makes
            the first image a blurred but sensible one.
        schedule: gives alpha and sigma.
        steps: K. start: the first time, the schedule's last by default.
        prediction: what the network predicts. With ``x0`` its output is the sample.
        alpha: in place of the schedule's alpha at ``start``; sigma follows from it. Released code has such constants.
        unit_noise: the first input is the noise as it is, at every ``start``; else ``sigma_start`` times it, which
            is what is left of a noised sample whose clean part is zero.

    Raises:
        UserError: fewer than one step, a start outside the schedule or too low for K different times, eps-prediction
            where alpha is 0 (zero terminal SNR).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: DiscreteSchedule,
        *,
        steps: int = 1,
        start: int | None = None,
        prediction: str = "eps",
        alpha: float | None = None,
        unit_noise: bool = True,
    ) -> None:
        super().__init__()
        first = len(schedule) - 1 if start is None else start
        if prediction not in PREDICTIONS:
            raise UserError("prediction", prediction, PREDICTIONS)
        if steps < 1:
            raise UserError("steps", steps, "1 or more")
        if not steps <= first < len(schedule):
            raise UserError("start", first, f"{steps} to {len(schedule) - 1}, for {steps} different times")
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.times = tuple(first * (steps - step) // steps for step in range(steps))
        self.unit_noise = unit_noise
        levels = [(float(schedule.alpha(time)), float(schedule.sigma(time))) for time in self.times]
        if alpha is not None:
            if not 0 <= alpha < 1:
                raise UserError("alpha", alpha, "from 0 to below 1")
            levels[0] = (alpha, (1 - alpha**2) ** 0.5)
        if prediction == "eps" and levels[0][0] == 0:
            raise UserError("prediction", "eps", "x0 or v: no signal is left at the first time (zero terminal SNR)")
        self.levels = tuple(levels)

    def __len__(self) -> int:
        return len(self.times)

    def forward(
        self, noise: Tensor, condition: Condition = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples ``[B, ...]`` of noise ``[B, ...]``, with the gradient through all steps.

        ``generator`` draws the noise of the steps after the first.
        """
        x = self._call(self._first(noise), 0, condition)
        for step in range(1, len(self)):
            x = self._call(self._renoised(x, step, generator), step, condition)
        return x

    def at(
        self, step: int, noise: Tensor, condition: Condition = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The output of one step, ``[B, ...]``: those before run without gradient, those after not at all."""
        if not 0 <= step < len(self):
            raise UserError("step", step, f"0 to {len(self) - 1}")
        given = self._first(noise)
        for before in range(step):
            with torch.no_grad():
                x = self._call(given, before, condition)
                given = self._renoised(x, before + 1, generator)
        return self._call(given, step, condition)

    def _first(self, noise: Tensor) -> Tensor:
        return noise if self.unit_noise else self.levels[0][1] * noise

    def _renoised(self, x: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        alpha, sigma = self.levels[step]
        return alpha * x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def _call(self, z: Tensor, step: int, condition: Condition) -> Tensor:
        alpha, sigma = self.levels[step]
        output: Any = self.network(z, torch.full((len(z),), self.times[step], device=z.device), condition)
        if self.prediction == "x0":
            x: Tensor = output
        elif self.prediction == "eps":
            x = (z - sigma * output) / alpha
        else:
            x = alpha * z - sigma * output
        return x

    def extra_repr(self) -> str:
        return f"times={self.times}, prediction={self.prediction}"
