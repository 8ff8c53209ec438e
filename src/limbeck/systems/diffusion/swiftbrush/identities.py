"""What is exact about the method, measured through the code that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import losses
from limbeck.diffusion.analytic import MixtureDenoiser
from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.scores import Scores, sds, vsd
from limbeck.diffusion.unet import SmallUNet
from limbeck.testbeds.recipe import seeded

from .method import ALPHA_T, one_step

#: Teacher of the fixed points: a Gaussian on the line, in class 0; the null condition is centred.
MEAN, DEVIATION = 0.7, 0.4
TIMES = (50, 250, 500, 750, 950)


def gradient_is_the_direction() -> float:
    """dL/dx against g / number of elements."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    (found,) = torch.autograd.grad(losses.toward_target(x, g), x)
    return float((found - g / x.numel()).abs().max())


def adapters_off_is_the_teacher() -> float:
    """One module in both roles: after its adapters have moved, switched off it is the teacher, bit for bit."""
    network = seeded(lambda: SmallUNet(8, (1, 2)), 0)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([10, 900]), torch.tensor([1, 2])
    with torch.no_grad():
        torch.nn.init.normal_(network.conv_out.weight)  # type: ignore[union-attr,arg-type]
        before = network(x, t, labels)
        scores = Scores.lora(network, schedule=DiscreteSchedule.scaled_linear(), null=10)
        same = scores.fake(x, t, labels)
        for weight in scores.weights.parameters():
            weight.add_(1.0)
        return float((scores.teacher(x, t, labels) - before).abs().max() + (same - before).abs().max())


def released_constant() -> float:
    """The literal alpha_T against Stable Diffusion's table."""
    return abs(ALPHA_T - float(DiscreteSchedule.scaled_linear().alpha(999)))


def vsd_ends_at_the_teacher() -> float:
    """Gradient flow of x = a z + b under VSD with an exact fake score: distance of (|a|, b) from the teacher's."""
    a, b = _flow("vsd")
    return abs(abs(a) - DEVIATION) + abs(b - MEAN)


def sds_ends_at_the_mode() -> float:
    """The same under SDS: distance of (a, b) from (0, mean)."""
    a, b = _flow("sds")
    return abs(a) + abs(b - MEAN)


def guidance_moves_the_fixed_point() -> float:
    """Teacher guided by 2, exact fake score: the mean ends at twice the class's, the deviation stays."""
    a, b = _flow("vsd", scale=2.0)
    return abs(abs(a) - DEVIATION) + abs(b - 2 * MEAN)


def _flow(direction: str, scale: float = 1.0) -> tuple[float, float]:
    """Descent along the loss's own gradient; the expectation over z and eps is a quadrature, so nothing is drawn."""
    schedule = DiscreteSchedule(DiscreteSchedule.scaled_linear().abar.double())
    centres = torch.tensor([[MEAN], [-MEAN]], dtype=torch.float64)
    # Null: a Gaussian of the same deviation around 0, so that guidance is a shift.
    null = MixtureDenoiser(schedule, torch.zeros(1, 1, dtype=torch.float64), DEVIATION)
    own = MixtureDenoiser(schedule, centres[:1], DEVIATION)

    def teacher(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return torch.where(condition[:, None] == 0, own(x, t), null(x, t))

    guided = Guided(teacher, scale, 1)
    points, shares = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(6))
    z, eps, t = (part.flatten() for part in torch.meshgrid(points, points, torch.tensor(TIMES).double(), indexing="ij"))
    weight = (shares[:, None, None] * shares[None, :, None]).expand(-1, -1, len(TIMES)).flatten()
    weight, t = weight / weight.sum(), t.long()
    sigma = schedule.sigma(t)[:, None]
    labels = torch.zeros(len(z), dtype=torch.long)
    state = torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        x = state[0] * z[:, None] + state[1]
        with torch.no_grad():
            noised = schedule.add_noise(x, eps[:, None], t)
            real = guided(noised, t, labels)
            if direction == "sds":
                g = sds(real, eps[:, None], sigma**2)
            else:
                fake = MixtureDenoiser(schedule, state[1:2].detach()[None], float(state[0].detach()))
                g = vsd(real, fake(noised, t), sigma**2)
        loss = losses.toward_target(x, g, per_row="sum", weight=weight, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, state)
        state = (state - gradient).detach().requires_grad_()
    a, b = state.detach().tolist()
    return a, b


def unit_alpha() -> float:
    """The released constant in the generator: x = (z - sigma eps) / alpha with exactly that alpha."""
    network = seeded(lambda: SmallUNet(8, (1, 2)), 0)
    made = one_step(network, DiscreteSchedule.scaled_linear(), alpha=ALPHA_T)
    z, labels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2])
    with torch.no_grad():
        eps = network(z, torch.tensor([999, 999]), labels)
        return float((made(z, labels) - (z - (1 - 0.0047) ** 0.5 * eps) / 0.0047**0.5).abs().max())
