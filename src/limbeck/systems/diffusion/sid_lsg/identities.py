"""What is exact about score identity distillation, measured through the code that trains."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import losses
from limbeck.diffusion.analytic import MixtureDenoiser
from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.losses.score import score_identity_scale

from .guidance import Guidance
from .method import few_steps

MEAN, DEVIATION = 0.7, 0.4
TIMES = (50, 250, 500, 750, 950)


class _Line:
    """A generator x = a z + b, its exact score and a Gaussian teacher; expectations are quadratures over z and eps."""

    def __init__(self) -> None:
        self.schedule = DiscreteSchedule(DiscreteSchedule.scaled_linear().abar.double())
        self.teacher = MixtureDenoiser(self.schedule, torch.tensor([[MEAN]], dtype=torch.float64), DEVIATION)
        points, shares = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(8))
        grid = torch.meshgrid(points, points, torch.tensor(TIMES).double(), indexing="ij")
        self.z, self.eps, t = (part.flatten() for part in grid)
        weight = (shares[:, None, None] * shares[None, :, None]).expand(-1, -1, len(TIMES)).flatten()
        self.weight, self.t = weight / weight.sum(), t.long()

    def clean(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y_r and y_f, with gradient to x."""
        x = state[0] * self.z[:, None] + state[1]
        noised = self.schedule.add_noise(x, self.eps[:, None], self.t)
        a, b = state.detach()
        fake = MixtureDenoiser(self.schedule, b[None, None], float(a.abs()))
        return x, self.teacher.x0(noised, self.t), fake.x0(noised, self.t)

    def loss(self, state: Tensor, alpha: float) -> Tensor:
        """The expected loss, without w."""
        x, real, fake = self.clean(state)
        return losses.score_identity(x, real, fake, alpha=alpha, weight=self.weight, reduction="sum")


@cache
def _line() -> _Line:
    return _Line()


def identity_of_the_divergence() -> float:
    """With an exact fake score the expected loss is (1 - alpha) E |y_r - y_f|^2, for alpha 1/2, 1 and 1.2."""
    line, state = _line(), torch.tensor([1.1, -0.3], dtype=torch.float64)
    _, real, fake = line.clean(state)
    gap = float(((real - fake).square()[:, 0] * line.weight).sum())
    return max(abs(float(line.loss(state, alpha)) - (1 - alpha) * gap) / gap for alpha in (0.5, 1.0, 1.2))


def ends_at_the_teacher() -> float:
    """Gradient flow of (a, b) with an exact fake score and alpha = 1: distance from the teacher's."""
    line, state = _line(), torch.tensor([1.1, -0.3], dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(line.loss(state, 1.0), state)
        state = (state - 0.5 * gradient).detach().requires_grad_()
    a, b = state.detach().tolist()
    return float(abs(abs(a) - DEVIATION) + abs(b - MEAN))


def without_gradient_it_is_vsd() -> float:
    """Both networks cut off, SiD's gradient is that of VSD (DMD): (y_f - y_r) / w."""
    line, state = _line(), torch.tensor([1.1, -0.3], dtype=torch.float64)
    x, real, fake = line.clean(state)
    x = x.requires_grad_()
    weight = 1 / score_identity_scale(x, real)
    (cut,) = torch.autograd.grad(losses.score_identity(x, real, fake, weight=weight), x)
    (vsd,) = torch.autograd.grad(losses.toward_target(x, fake - real, per_row="sum", weight=weight), x)
    return float((cut - vsd).abs().max())


def guidance_of_one_asks_once() -> float:
    """Rows that a network sees per sample without guidance, less one; and with it, less two."""
    seen = 0

    def denoiser(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        nonlocal seen
        seen += len(x)
        return x

    x, t, labels = torch.zeros(4, 2), torch.zeros(4), torch.zeros(4)
    for scale in (Guidance.lsg(1.0).teacher, Guidance.lsg(1.5).teacher):
        Guided(denoiser, scale, 1)(x, t, labels)
    return abs(seen - 4 - 8)


def first_input_is_scaled_noise() -> float:
    """The first input of K steps is sigma_625 times the noise, and the times are 625, 468, 312, 156."""
    given: list[Tensor] = []

    class Probe(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            given.append(x)
            return torch.zeros_like(x)

    schedule = DiscreteSchedule.scaled_linear()
    made = few_steps(Probe(), schedule)
    noise = torch.ones(2, 3)
    made(noise, torch.zeros(2))
    wrong = 0.0 if made.times == (625, 468, 312, 156) else 1.0
    return wrong + float((given[0] - schedule.sigma(625) * noise).abs().max())
