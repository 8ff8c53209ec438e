"""Random masks of patches that teacher, student and cache can draw again: a function of the batch's view seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.signals import Batch


class PatchNoise:
    """Gives every image of a batch the noise that decides which of its patches a masked network sees.

    A transform of ``TensorLoader``: ``batch["input"]`` becomes ``{"pixel_values": images, "noise": [B, patches]}``, the
    arguments of :class:`~limbeck.models.masked_autoencoder.MaskedAutoencoder` and of transformers' ViTMAE models, which
    keep the patches with the smallest noise. All networks that read one batch so see the same patches, and an image's
    mask depends on its own ``view`` seed alone. The noise of an image is a permutation of 0, 1/L, ..., so that no two
    patches tie on any device.

    Args:
        patches: of one image.
        before: another transform of the images, such as ``CropFlip``, called first.
    """

    def __init__(self, patches: int, before: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None) -> None:
        if patches < 1:
            raise UserError("patches", patches, "1 or more")
        self.patches, self.before = patches, before

    def __call__(self, batch: Batch) -> dict[str, Any]:
        if "view" not in batch:
            raise UserError("batch", sorted(batch), "a batch with view seeds, as TensorLoader(transform=...) gives")
        given = dict(batch if self.before is None else self.before(dict(batch)))
        return {**given, "input": {"pixel_values": given["input"], "noise": self.noise(given["view"])}}

    def noise(self, view: Tensor) -> Tensor:
        """Noise ``[B, patches]`` in [0, 1) of the views ``[B]``."""
        # Draws of augmentations count up from 0; these begin far behind them.
        drawn = torch.stack([uniform(view, 1000 + place) for place in range(self.patches)], dim=1)
        return drawn.argsort(dim=1).argsort(dim=1).float() / self.patches

    def __repr__(self) -> str:
        return f"PatchNoise(patches={self.patches}, before={self.before})"
