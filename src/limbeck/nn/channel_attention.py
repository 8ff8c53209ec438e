"""Attention blocks of feature maps: squeeze-and-excite, the masked block SSPCAB, and gates by a softmax along rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError


class SqueezeExcite(nn.Module):
    """Scale every channel by a number between 0 and 1 that the mean of all channels decides.

        out_c = x_c * sigmoid(W2 relu(W1 mean_hw(x)))_c

    Args:
        channels: of the maps ``[B, C, H, W]``.
        reduction: the hidden layer has ``channels // reduction`` units, at least one.

    Source: Hu, Shen and Sun, Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        scaled: Tensor = maps * self.gate(maps.mean((2, 3)))[..., None, None]
        return scaled


class SSPCAB(nn.Module):
    """Self-supervised predictive convolutional attention: a position is predicted from around it, never from itself.

        p(i, j) = relu( sum over the four corners (a, b) of W_ab x(i + a d, j + b d) + bias ),   out = SE(p)

    With ``kernel_size`` 1 and ``dilation`` 1 the corners lie ``d = 2`` cells away along both diagonals. On a grid of
    two cells or fewer nothing of the input is in sight; three cells see it only at their own corners.

    Args:
        channels: of the maps ``[B, C, H, W]``, also of the output.
        kernel_size: side of each corner's convolution. dilation: cells left out between it and the hidden centre.
        reduction: of the squeeze-and-excite that follows.

    Source: Ristea et al., Self-Supervised Predictive Convolutional Attentive Block for Anomaly Detection, CVPR 2022.
    The paper's extra loss, that the block reconstructs its input, is not part of it.
    """

    def __init__(self, channels: int, kernel_size: int = 1, dilation: int = 1, reduction: int = 8) -> None:
        super().__init__()
        self.pad, self.border = kernel_size + dilation, kernel_size + 2 * dilation + 1
        self.corners = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size) for _ in range(4))
        self.excite = SqueezeExcite(channels, reduction)

    def predict(self, maps: Tensor) -> Tensor:
        """What stands at every position, before the squeeze-and-excite."""
        padded, border = functional.pad(maps, [self.pad] * 4), self.border
        views = [padded[:, :, rows, columns] for rows in _ends(border) for columns in _ends(border)]
        return torch.stack([corner(view) for corner, view in zip(self.corners, views, strict=True)]).sum(0).relu()

    def forward(self, maps: Tensor) -> Tensor:
        excited: Tensor = self.excite(self.predict(maps))
        return excited


def _ends(border: int) -> tuple[slice, slice]:
    return slice(None, -border), slice(border, None)


class RowSoftmaxGate(nn.Module):
    """Every row of a map shares one unit of attention among its columns, channel by channel.

        v = relu(conv(x)),   out = v * softmax_columns(g(v))

    ``g`` is ``layers`` convolutions with ReLU between them. The softmax runs along the last axis alone, as the code of
    DBFAD has it, so that a gate over W columns is 1 / W on average.

    Args:
        channels: of the maps ``[B, C, H, W]``, also of the output.
        kernel_size: of all convolutions, odd; the grid is kept.
        layers: convolutions of the gate.

    Source: Thomine and Snoussi, Distillation-based fabric anomaly detection, Textile Research Journal 2024 [code]:
    one layer of 3 x 3 in the bottleneck, two of 1 x 1 in the links.
    """

    def __init__(self, channels: int, kernel_size: int = 1, layers: int = 2) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or layers < 1:
            raise UserError("kernel_size, layers", f"{kernel_size}, {layers}", "an odd kernel and at least one layer")

        def conv() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)

        self.value = nn.Sequential(conv(), nn.ReLU())
        between = [part for _ in range(layers - 1) for part in (conv(), nn.ReLU())]
        self.gate = nn.Sequential(*between, conv())

    def forward(self, maps: Tensor) -> Tensor:
        value = self.value(maps)
        gated: Tensor = value * self.gate(value).softmax(-1)
        return gated
