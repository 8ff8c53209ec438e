"""Networks of exploration and of agents, with the initialisation that reinforcement learning wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from limbeck.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def perceptron(inputs: int, hidden: Sequence[int] = (64, 64), outputs: int = 64) -> nn.Sequential:
    """Flatten, then linear layers with ReLU between them."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def conv_network(
    shape: Sequence[int], outputs: int = 64, *, channels: Sequence[int] = (16, 32), hidden: Sequence[int] = (64,)
) -> nn.Sequential:
    """Convolutions for images ``[B, H, W, C]`` as gymnasium gives them, then linear layers.

    Images above 32 pixels are halved by every convolution, smaller ones (minigrid) keep their size but for the
    borders. For Atari: ``channels=(32, 64, 64), hidden=(512, 512)``.
    """
    if len(shape) != 3 or min(shape[:2]) <= len(channels):
        raise UserError("shape", list(shape), "[H, W, C], with more pixels a side than convolutions")
    large = min(shape[:2]) > 32
    layers: list[nn.Module] = [ChannelsFirst()]
    for a, b in pairwise([shape[2], *channels]):
        layers += [nn.Conv2d(a, b, 4 if large else 2, stride=2 if large else 1), nn.ReLU()]
    with torch.no_grad():
        flat = int(nn.Sequential(*layers)(torch.zeros(1, *shape)).numel())
    return nn.Sequential(*layers, *perceptron(flat, hidden, outputs))


class ChannelsFirst(nn.Module):
    """``[B, H, W, C]`` to ``[B, C, H, W]``."""

    def forward(self, images: Tensor) -> Tensor:
        return images.movedim(-1, 1)


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """What ``make`` builds, with weights that depend on ``seed`` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def orthogonal(network: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights of ``gain`` and no biases, in place."""
    for part in network.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return network
