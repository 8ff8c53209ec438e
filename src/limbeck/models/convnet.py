"""The ConvNet of the data-set distillation literature: equal blocks with a norm per image, and a linear head."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from limbeck.errors import UserError


class ConvNet(nn.Module):
    """Blocks of 3 x 3 convolution, instance norm, ReLU and 2 x 2 average pooling, then a linear layer on all pixels.

    Instance norm knows no other image of the batch, so that features of a class do not depend on which other classes
    share its batch. The first layer maps pixels in [0, 1] to mean 0 and deviation 1: whoever stores or augments images
    does so in [0, 1].

    Taps: ``blocks.0`` ... (maps), ``head:input`` (features ``[B, width * side^2]``), ``head`` (logits).

    Args:
        classes, in_channels, size: of the data; ``size`` is the images' side.
        depth, width: blocks, and channels of each.
        mean, deviation: of the pixels, per channel.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        size: int = 32,
        *,
        depth: int = 3,
        width: int = 128,
        mean: tuple[float, ...] = (0.5,),
        deviation: tuple[float, ...] = (0.25,),
    ) -> None:
        super().__init__()
        side = size // 2**depth
        if depth < 1 or side < 1:
            raise UserError("depth", depth, f"1 to {size.bit_length() - 1} blocks for images of {size} pixels")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False)
        self.blocks = nn.Sequential(*(_block(width if i else in_channels, width) for i in range(depth)))
        self.head = nn.Linear(width * side**2, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, ``[B, width * side^2]``."""
        maps: Tensor = self.blocks((images - self.mean) / self.deviation)
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``images`` ``[B, in_channels, size, size]`` in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _block(in_channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, width, 3, padding=1)
    # One group per channel is instance norm with a scale and a shift.
    layers = OrderedDict(conv=conv, norm=nn.GroupNorm(width, width), relu=nn.ReLU(), pool=nn.AvgPool2d(2))
    return nn.Sequential(layers)
