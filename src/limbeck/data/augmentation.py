"""Augmentations of batches of small images, drawn from the batch's ``view`` seeds: replayable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.data.views import integers
from limbeck.errors import UserError
from limbeck.signals import Batch


def seeds_of(batch: Batch) -> Tensor:
    """The view seeds of a batch, or an error that says where they come from."""
    if "view" not in batch:
        raise UserError("batch", sorted(batch), "a batch with view seeds, as TensorLoader(transform=...) gives")
    view: Tensor = batch["view"]
    return view


class CropFlip:
    """Shift every image by up to ``padding`` pixels and mirror half of them, as is usual for CIFAR.

    A transform of ``TensorLoader``: ``batch["input"]`` ``[B, C, H, W]`` is replaced, everything else is kept.
    Each image's shift and mirroring depend on its own ``view`` seed alone, so a view can be made again from
    (image, seed) in another batch, process or order.

    Args:
        padding: pixels added on every side before cropping back to the old size.
        flip: mirror left to right with probability one half; off for digits and letters.
        fill: value of the added pixels.
    """

    def __init__(self, padding: int = 4, *, flip: bool = True, fill: float = 0.0) -> None:
        if padding < 0:
            raise UserError("padding", padding, "0 or more pixels")
        self.padding, self.flip, self.fill = padding, flip, fill

    def __call__(self, batch: Batch) -> dict[str, Any]:
        return {**batch, "input": self.images(batch["input"], seeds_of(batch))}

    def images(self, images: Tensor, view: Tensor) -> Tensor:
        """The views ``view`` (int64 ``[B]``) of ``images`` ``[B, C, H, W]``."""
        height, width = images.shape[-2:]
        view = view.to(images.device)
        padded = functional.pad(images, (self.padding,) * 4, value=self.fill)
        offsets = 2 * self.padding + 1
        rows = integers(view, 0, offsets)[:, None] + torch.arange(height, device=images.device)
        columns = integers(view, 1, offsets)[:, None] + torch.arange(width, device=images.device)
        if self.flip:
            columns = torch.where(integers(view, 2, 2)[:, None] == 1, columns.flip(1), columns)
        place = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)
        pixels = padded.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1))
        return pixels.view_as(images)

    def __repr__(self) -> str:
        return f"CropFlip(padding={self.padding}, flip={self.flip}, fill={self.fill})"


def gaussian_blur(images: Tensor, sigma: float = 0.8) -> Tensor:
    """Images ``[B, C, H, W]`` blurred by a 3 x 3 Gaussian, edges reflected."""
    side = torch.exp(torch.tensor(-0.5 / sigma**2, dtype=images.dtype, device=images.device))
    line = torch.stack([side, torch.ones_like(side), side]) / (1 + 2 * side)
    kernel = torch.outer(line, line).expand(images.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=images.shape[1])
