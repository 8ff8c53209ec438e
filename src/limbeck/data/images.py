"""Images to tensors: one description of what a network wants to see, and the decoding that follows it.

An image is given as a path, as the bytes of a file, as a PIL image, or as a uint8 array or tensor ``[C, H, W]``,
``[H, W, C]`` or ``[H, W]``. Small image sets are decoded once (:func:`decoded`), large ones batch by batch.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from limbeck.data.split import Split
from limbeck.errors import LimbeckError, UserError, first_line

FITS = ("cover", "stretch")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: Image sets that take no more bytes than this once decoded are kept in memory.
IN_MEMORY = 1 << 30

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ImageFormat:
    """How an image becomes a network's input: resize, cut the middle out, scale, normalise.

    Attributes:
        size: height and width that the network sees.
        resize: height and width to resize to before the middle is cut out.
        fit: ``cover`` keeps the proportions and makes the image just cover ``resize``; ``stretch`` does not.
        interpolation: one of ``INTERPOLATIONS``.
        mean, std: per channel, on the scale of ``scale``; their length, 1 or 3, is the number of channels.
        scale: factor of the 0 ... 255 pixel values, usually 1/255.
    """

    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    fit: str = "cover"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError("image fit", self.fit, FITS)
        if self.interpolation not in INTERPOLATIONS:
            raise UserError("image interpolation", self.interpolation, INTERPOLATIONS)
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise UserError("image mean", self.mean, "1 or 3 numbers, and as many in std")
        if min((*self.size, *self.resize)) < 1 or min(self.std) <= 0:
            raise UserError("image format", f"size {self.size}, std {self.std}", "sizes and deviations above 0")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    def geometry(self) -> ImageFormat:
        """The same without normalisation: two formats with one geometry share their decoded pixels."""
        zeros, ones = (0.0,) * self.channels, (1.0,) * self.channels
        return replace(self, mean=zeros, std=ones, scale=1.0)

    def describe(self) -> dict[str, Any]:
        """As plain values, for fingerprints and model cards."""
        return {
            "size": list(self.size),
            "resize": list(self.resize),
            "fit": self.fit,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "scale": self.scale,
        }

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> ImageFormat:
        """The format that :meth:`describe` described."""
        plain: dict[str, Any] = {
            k: tuple(value) if isinstance(value, list) else value for k, value in described.items()
        }
        return cls(**plain)

    def pixels(self, image: Any) -> Tensor:
        """The image as uint8 ``[channels, *size]``.

        Raises:
            LimbeckError: it cannot be decoded; the message names its path.
        """
        picture = open_image(image).convert("RGB" if self.channels == 3 else "L")
        width, height = self._target(*picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        left, top = (width - self.size[1]) // 2, (height - self.size[0]) // 2
        if (width, height) != (self.size[1], self.size[0]):
            # What lies outside of the image comes out black.
            picture = picture.crop((left, top, left + self.size[1], top + self.size[0]))
        array = np.asarray(picture)
        return torch.from_numpy(array.reshape(*self.size, self.channels).transpose(2, 0, 1).copy())

    def __call__(self, images: Sequence[Any] | Tensor) -> Tensor:
        """Float input ``[B, channels, *size]`` of a batch.

        A float tensor counts as prepared already; a uint8 tensor of the right size is only normalised.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            if images.dim() != 4 or images.shape[1] != self.channels:
                raise UserError("input", list(images.shape), f"[B, {self.channels}, H, W], prepared images")
            return images
        if isinstance(images, Tensor) and tuple(images.shape[1:]) == (self.channels, *self.size):
            return self.normalize(images)
        return self.normalize(torch.stack(list(in_threads(self.pixels, images))))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 ``[..., channels, H, W]`` to float."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return pixels.float().mul_(self.scale).sub_(mean).div_(std)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        high, wide = self.resize
        if self.fit == "stretch":
            return wide, high
        if high * width >= wide * height:
            return max(wide, high * width // height), high
        return wide, max(high, wide * height // width)


def decoded(
    split: Split,
    formats: Sequence[ImageFormat],
    *,
    limit: int = IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """The split with its images as one uint8 tensor, where that serves all networks and fits in memory.

    Args:
        formats: what the networks that read the split want to see. If they differ in more than normalisation, the
            split is returned as it is, since one network's pixels are not another's.
        limit: bytes that the decoded images may take; of a larger split every batch is decoded anew.
        progress: called with the images done and the images in all.
    """
    image_format = formats[0]
    if any(other.geometry() != image_format.geometry() for other in formats):
        return split
    shape = (len(split), image_format.channels, *image_format.size)
    given = split.input
    if isinstance(given, Tensor) and (given.is_floating_point() or tuple(given.shape) == shape):
        return split
    if math.prod(shape) > limit:
        return split
    pixels = torch.empty(shape, dtype=torch.uint8)
    for place, image in enumerate(in_threads(image_format.pixels, given)):
        pixels[place] = image
        if progress is not None:
            progress(place + 1, len(split))
    return Split(pixels, split.target, split.id)


def open_image(image: Any) -> Image.Image:
    """A PIL image of whatever stands for one; see the module."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike, bytes)):
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                opened.load()
                return opened
        except Exception as error:
            name = "the bytes of an image" if isinstance(image, bytes) else str(image)
            raise LimbeckError(f"image {name} cannot be decoded: {_reason(error)}") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UserError(
            "image",
            f"{type(image).__name__} of {array.dtype} {list(array.shape)}",
            "a path, bytes or uint8 array",
        )
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array))


def fault(image: str | bytes) -> str | None:
    """Why an image cannot be decoded, or None. JPEGs are read through at an eighth of their size, which is cheap."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            opened.draft("RGB", (1, 1))
            opened.load()
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    # PIL's own words name an object in memory.
    return "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)


def in_threads(function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """``map`` in a few threads, in order: PIL decodes and resizes without holding Python's lock."""
    return _pool(os.getpid()).map(function, items)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="limbeck-images")
