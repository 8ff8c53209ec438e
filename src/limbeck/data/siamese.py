"""Differentiable augmentation of images, in which images of one view seed share one draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.data.augmentation import CropFlip, seeds_of
from limbeck.data.views import integers, uniform
from limbeck.errors import UserError
from limbeck.signals import Batch

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
# Which draw of a view decides what; CropFlip takes the first three.
_CHOICE, _BRIGHTNESS, _SATURATION, _CONTRAST, _ROW, _COLUMN, _WIDER, _HIGHER, _ANGLE = range(3, 12)


class SiameseAugment:
    """Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) of pixels in [0, 1].

    The gradient flows through every operation to the pixels. A draw is a pure function of an image's ``view`` seed:
    give real and synthetic images the same one and they are shifted, tinted and cut alike (*siamese*); as a transform
    of ``TensorLoader`` every image has its own.

    Args:
        operations: any of ``color`` (brightness, saturation, contrast), ``crop`` (a random shift), ``cutout``,
            ``flip``, ``scale``, ``rotate``. Each is applied, in that order, with strength 0 where its draw says so.
        brightness, saturation, contrast: ``x + (u - 1/2) brightness``; colours times ``u saturation`` around the grey;
            pixels times ``u + contrast`` around the mean; u uniform in [0, 1).
        crop: largest shift, as a share of the side. cutout: side of the black square, as a share of the side.
        scale: each axis is scaled by between ``1 / scale`` and ``scale``. rotation: largest angle in degrees.
        one: apply one operation per view, drawn at random, as the first release of DSA does; else all.
    """

    def __init__(
        self,
        operations: Sequence[str] = OPERATIONS,
        *,
        brightness: float = 1.0,
        saturation: float = 2.0,
        contrast: float = 0.5,
        crop: float = 0.125,
        cutout: float = 0.5,
        scale: float = 1.2,
        rotation: float = 15.0,
        one: bool = False,
    ) -> None:
        for operation in operations:
            if operation not in OPERATIONS:
                raise UserError("operation", operation, OPERATIONS)
        if not scale >= 1:
            raise UserError("scale", scale, "1 or more")
        self.operations, self.one = tuple(operations), one
        self.brightness, self.saturation, self.contrast = brightness, saturation, contrast
        self.crop, self.cutout, self.scale, self.rotation = crop, cutout, scale, rotation

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """A transform of ``TensorLoader``: every image by its own view."""
        return {**batch, "input": self.images(batch["input"], seeds_of(batch))}

    def images(self, images: Tensor, view: Tensor) -> Tensor:
        """``images`` ``[B, C, H, W]`` as their ``view`` (int64 ``[B]``, or one for all) draws them."""
        view = view.to(images.device).expand(len(images))
        if not self.one:
            for operation in self.operations:
                images = self._apply(operation, images, view)
            return images
        chosen = integers(view, _CHOICE, len(self.operations))
        for number, operation in enumerate(self.operations):
            rows = (chosen == number).nonzero().squeeze(-1)
            if len(rows):
                images = images.index_copy(0, rows, self._apply(operation, images[rows], view[rows]))
        return images

    def _apply(self, operation: str, images: Tensor, view: Tensor) -> Tensor:
        if operation == "crop":
            return CropFlip(round(self.crop * images.shape[-1]), flip=False).images(images, view)
        if operation == "flip":
            return CropFlip(0, flip=True).images(images, view)
        kinds = {"color": self._color, "cutout": self._cutout, "scale": self._scale, "rotate": self._rotate}
        return kinds[operation](images, view)

    def _color(self, images: Tensor, view: Tensor) -> Tensor:
        images = images + (_draw(images, view, _BRIGHTNESS) - 0.5) * self.brightness
        if images.shape[1] > 1:
            grey = images.mean(dim=1, keepdim=True)
            images = grey + (images - grey) * (_draw(images, view, _SATURATION) * self.saturation)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return mean + (images - mean) * (_draw(images, view, _CONTRAST) + self.contrast)

    def _cutout(self, images: Tensor, view: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        covered = []
        for draw, length in ((_ROW, height), (_COLUMN, width)):
            side = round(self.cutout * length)
            # The square's middle lies anywhere in the image, so that it may hang over the edge.
            first = integers(view, draw, length + 1 - side % 2)[:, None] - side // 2
            places = torch.arange(length, device=images.device)
            covered.append((places >= first) & (places < first + side))
        hole = covered[0][:, None, :, None] & covered[1][:, None, None, :]
        return images.masked_fill(hole, 0.0)

    def _scale(self, images: Tensor, view: Tensor) -> Tensor:
        low = 1 / self.scale
        wider, higher = (low + (self.scale - low) * uniform(view, draw) for draw in (_WIDER, _HIGHER))
        none = torch.zeros_like(wider)
        return _warp(images, torch.stack([wider, none, none, none, higher, none], dim=-1))

    def _rotate(self, images: Tensor, view: Tensor) -> Tensor:
        angle = (2 * uniform(view, _ANGLE) - 1) * math.radians(self.rotation)
        cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        return _warp(images, torch.stack([cos, -sin, none, sin, cos, none], dim=-1))

    def __repr__(self) -> str:
        return f"SiameseAugment({', '.join(self.operations)})"


def _draw(images: Tensor, view: Tensor, number: int) -> Tensor:
    return uniform(view, number).to(images.dtype).view(-1, 1, 1, 1)


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    grid = functional.affine_grid(matrix.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=True)
    return functional.grid_sample(images, grid, align_corners=True)
