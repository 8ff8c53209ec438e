"""A frozen network that answers with its feature maps: the teacher of feature distillation on images."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.taps import Taps


class MultiTap(nn.Module):
    """Tapped maps of an unmodified network, by name, always in eval mode and without gradient.

    Args:
        network: any network of images.
        taps: name -> path, from shallow to deep; see :class:`limbeck.taps.Taps`.
        pooled: names that are halved by 3 x 3 max pooling, as a stem without a pooling layer of its own asks for.

    ``shapes(images)`` gives what :class:`limbeck.nn.reverse_decoder.ReverseStudent` is built from.
    """

    def __init__(self, network: nn.Module, taps: Mapping[str, str], pooled: Collection[str] = ()) -> None:
        super().__init__()
        for name in pooled:
            if name not in taps:
                raise UserError("pooled", name, taps)
        self.network = network.requires_grad_(False).eval()
        self.names, self.pooled = tuple(taps), frozenset(pooled)
        self.taps = Taps(network, dict(taps))

    def train(self, mode: bool = True) -> MultiTap:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with self.taps.capture() as maps:
            self.network(images)
        return {name: self._fitted(name, maps[name]) for name in self.names}

    def _fitted(self, name: str, maps: Tensor) -> Tensor:
        return functional.max_pool2d(maps, 3, 2, 1) if name in self.pooled else maps

    def shapes(self, images: Tensor) -> dict[str, tuple[int, ...]]:
        """``(channels, height, width)`` of every map."""
        return {name: tuple(maps.shape[1:]) for name, maps in self(images[:1]).items()}
