"""The fake score's encoder as a discriminator, without a weight of its own, and how its term is mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbeck.diffusion.denoiser import Condition
from limbeck.diffusion.split import split


@dataclass(frozen=True)
class Adversarial:
    """SiDA's settings.

    Attributes:
        discriminator_weight: of its loss beside the fake score's.
        sid_weight, weight: of both parts of the generator's loss, halved; the adversarial part is scaled by the number
            of elements first, since the other is a sum over them.
        generator_from, adversarial_from: steps before the generator moves at all, and before the term joins.
    """

    discriminator_weight: float = 1.0
    sid_weight: float = 100.0
    weight: float = 0.01
    generator_from: int = 0
    adversarial_from: int = 0


def encoder_logits(network: Any, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """``[B, 1, h, w]``: the mean over channels of the encoder's last feature map; high where x looks real."""
    return split(network).encode(x, t, condition).hidden.mean(1, keepdim=True)
