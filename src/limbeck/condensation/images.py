"""Small sets of images that are learned: pixels as parameters, several pictures in one, eight bits when they are kept.

A stored image of factor f holds f x f pictures of half (a third, ...) the side; *decoding* cuts them apart and enlarges
each to the full size. So one image's bytes buy f^2 training samples, which share its label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.condensation.packing import Tiles, decode_tiles
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.errors import UserError

STARTS = ("mix", "real", "noise")


class SyntheticImages(nn.Module):
    """Learnable images ``[N, C, H, W]`` in [0, 1], sorted by class, equally many for each.

    Args:
        pixels: where they start.
        target: class of every image, rising.
        factor: tiles per side of an image.
    """

    target: Tensor

    def __init__(self, pixels: Tensor, target: Tensor, factor: int = 1) -> None:
        super().__init__()
        classes, counts = target.unique(return_counts=True)
        if len(pixels) != len(target) or len(counts.unique()) != 1 or bool((target.diff() < 0).any()):
            raise UserError("target", target.tolist(), "a rising class per image, equally many of each")
        if not 1 <= factor <= min(pixels.shape[-2:]):
            raise UserError("factor", factor, f"1 to the images' side, {min(pixels.shape[-2:])}")
        self.pixels = nn.Parameter(pixels.detach().clone().float())
        self.register_buffer("target", target)
        self.classes, self.per_class, self.factor = classes.tolist(), int(counts[0]), factor

    @classmethod
    def start(cls, how: str, real: Split, per_class: int, *, factor: int = 1, seed: int = 0) -> SyntheticImages:
        """Begin from ``mix`` (every tile a random real image of its class, shrunk), ``real`` (a random real image,
        whole) or ``noise`` (uniform pixels). To go on from a kept set use :meth:`load`.

        Args:
            real: images ``[N, C, H, W]`` in [0, 1] with classes. A class with too few is drawn from with replacement.
            per_class: stored images of every class.
        """
        if how not in STARTS:
            raise UserError("start", how, STARTS, "SyntheticImages.load goes on from a distilled set")
        if per_class < 1:
            raise UserError("per_class", per_class, "1 or more")
        images = real.input
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise UserError("images", type(images).__name__, "a tensor [N, C, H, W]")
        classes = real.labels.unique()
        target = classes.repeat_interleave(per_class)
        generator = torch.Generator().manual_seed(seed)
        if how == "noise":
            return cls(torch.rand(len(target), *images.shape[1:], generator=generator), target, factor)
        needed = per_class * (factor**2 if how == "mix" else 1)
        rows = torch.cat([_draw((real.labels == one).nonzero().squeeze(-1), needed, generator) for one in classes])
        chosen = images[rows].float()
        return cls(encode_tiles(chosen, factor) if how == "mix" else chosen, target, factor)

    @classmethod
    def load(cls, made: DistilledSet) -> SyntheticImages:
        """Go on from a set that :meth:`distilled` made."""
        if made.kind != "tiles" or made.target.is_floating_point():
            raise UserError("distilled set", made.kind, "a set of tiled images with classes")
        pixels, factor = made.tensors["pixels"].float() / 255, int(made.tensors["factor"])
        return cls(pixels, made.target.long(), factor)

    def forward(self, first: int = 0, last: int | None = None) -> Tensor:
        """The pictures of classes number ``first`` to ``last`` (exclusive), decoded and sorted by class."""
        span = slice(first * self.per_class, None if last is None else last * self.per_class)
        return decode_tiles(self.pixels[span], self.factor)

    @property
    def labels(self) -> Tensor:
        """The class of every decoded picture."""
        return self.target.repeat_interleave(self.factor**2)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Back into [0, 1], after a step that left it."""
        self.pixels.clamp_(0, 1)

    def distilled(self, about: dict[str, str] | None = None) -> DistilledSet:
        """The set as it is kept: eight bits per pixel and channel."""
        return DistilledSet.of(Tiles(eight_bits(self.pixels), self.factor), self.target.cpu(), about=about)


def eight_bits(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, rounded to the nearest step."""
    return (255 * pixels.detach().cpu().clamp(0, 1)).round().to(torch.uint8)


def encode_tiles(pictures: Tensor, factor: int) -> Tensor:
    """``[N * factor^2, C, H, W]`` shrunk and put side by side into ``[N, C, H, W]``, row by row."""
    if factor == 1:
        return pictures
    count, channels, height, width = pictures.shape
    if count % factor**2:
        raise UserError("pictures", count, f"a multiple of the tiles of an image, {factor**2}")
    sides = -(-height // factor), -(-width // factor)
    small = functional.interpolate(pictures, sides, mode="bilinear", antialias=True, align_corners=False)
    grid = small.view(-1, factor, factor, channels, *sides).permute(0, 3, 1, 4, 2, 5)
    # An odd side leaves the last tiles a row or column short.
    return grid.reshape(-1, channels, factor * sides[0], factor * sides[1])[..., :height, :width].contiguous()


def _draw(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if count <= len(members):
        return members[torch.randperm(len(members), generator=generator)[:count]]
    return members[torch.randint(len(members), (count,), generator=generator)]
