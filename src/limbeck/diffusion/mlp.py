"""A small denoiser for points: what is proven in the plane is proven with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.diffusion.split import Encoded
from limbeck.diffusion.unet import sinusoids
from limbeck.errors import UserError


class MLPDenoiser(nn.Module):
    """``(x [B, D], t [B], condition [B]) -> [B, D]`` by fully connected layers.

    Args:
        size: D. width, depth: of the hidden layers. classes: ``classes`` itself is the null condition.
    """

    def __init__(self, size: int = 2, width: int = 128, depth: int = 3, *, classes: int = 1) -> None:
        super().__init__()
        if depth < 1 or width % 2:
            raise UserError("depth, width", [depth, width], "one layer or more, an even width")
        self.classes = classes
        self.given = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Embedding(classes + 1, width)
        layers: list[nn.Module] = [nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(width, size)

    @property
    def null(self) -> int:
        """The class number that stands for no condition."""
        return self.classes

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction ``[B, D]``."""
        return self.decode(self.encode(x, t, condition), t, condition)

    def encode(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Encoded:
        """What the last hidden layer holds, ``[B, width]``: the counterpart of a UNet's first half."""
        if condition is None:
            condition = torch.full((len(x),), self.null, device=x.device)
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        embedded = self.time(sinusoids(times, self.time[0].in_features).to(x.dtype)) + self.condition(condition)  # type: ignore[arg-type]
        return Encoded(self.layers(self.given(x) + embedded), ())

    def decode(self, encoded: Encoded, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction from what :meth:`encode` gave."""
        made: Tensor = self.out(encoded.hidden)
        return made
