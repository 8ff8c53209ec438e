"""What is exact about the method, measured on a network with random weights: it holds for any."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.samplers import DDIM, DPMSolverPP
from limbeck.diffusion.unet import SmallUNet
from limbeck.testbeds.recipe import Built, seeded

from .method import FasterDiffusion


def randomised(network: Built, seed: int) -> Built:
    """Layers that start at zero get weights too: they would hide what reaches the output through them."""

    def fill() -> Built:
        for parameter in network.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.05)
        return network.eval()

    return seeded(fill, seed)


@cache
def _identity_setting() -> tuple[SmallUNet, DiscreteSchedule, Tensor, Tensor]:
    network = randomised(seeded(lambda: SmallUNet(8, (1, 2, 2)), 0), 1)
    generator = torch.Generator().manual_seed(2)
    return network, DiscreteSchedule.scaled_linear(), torch.randn(4, 1, 16, 16, generator=generator), torch.arange(4)


def halves_joined() -> float:
    """The network's prediction against decode(encode(...))."""
    network, _, noise, labels = _identity_setting()
    t = torch.tensor([999, 600, 300, 0])
    with torch.no_grad():
        whole = network(noise, t, labels)
        return float((network.decode(network.encode(noise, t, labels), t, labels) - whole).abs().max())


def every_step_a_key() -> float:
    """K = all steps against the full sampler, both solvers."""
    network, schedule, noise, labels = _identity_setting()
    worst = 0.0
    for solver in (DDIM, DPMSolverPP):
        sampler = solver(Grid.spaced(schedule, 12))
        full = sampler.sample(Guided(network, 2.0, network.null), noise, labels)
        fast = FasterDiffusion(network, sampler, "all", scale=2.0, null=network.null).sample(noise, labels)
        worst = max(worst, float((fast - full).abs().max()))
    return worst


def parallel_against_serial() -> float:
    """Both forms with guidance and injection, for DPM-Solver++ and for DDIM with noise of its own; relative."""
    network, schedule, noise, labels = _identity_setting()
    worst = 0.0
    for sampler in (DPMSolverPP(Grid.spaced(schedule, 50)), DDIM(Grid.spaced(schedule, 50), eta=1.0)):
        made = [
            FasterDiffusion(
                network, sampler, "50ls", scale=2.0, null=network.null, parallel=parallel, injection=0.003
            ).sample(noise, labels, generator=torch.Generator().manual_seed(3))
            for parallel in (True, False)
        ]
        worst = max(worst, float((made[0] - made[1]).abs().max() / made[1].abs().max()))
    return worst
