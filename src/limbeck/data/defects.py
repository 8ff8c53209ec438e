"""Defects put into images of good surfaces, with the exact mask of what was changed: ground truth that no set holds.

Every image gets one defect; kind, place, size and contrast are functions of the image's own seed, so that a set can be
made again and compared at any number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from limbeck.errors import UserError

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Defective:
    """Images with one defect each.

    Attributes:
        images: uint8 ``[N, C, H, W]``. masks: bool ``[N, H, W]``, the pixels that may differ from the good image.
        kinds: int64 ``[N]``, numbers in the synthesiser's ``kinds``. contrast: ``[N]``, how strong, 0 to 1.
    """

    images: Tensor
    masks: Tensor
    kinds: Tensor
    contrast: Tensor


class DefectSynthesiser:
    """Puts defects of known kinds into good images.

    ``scratch``: a thin line, brighter or darker; ``blur``: a spot out of focus; ``stain``: a soft spot of another
    brightness or colour; ``stripe``: a row of thread is missing, and its neighbours' mean stands there; ``paste``: a
    patch of another surface.

    Args:
        kinds: of them, in turn.
        contrast: smallest and largest strength: the change of a scratch or stain as a share of the range of pixels, and
            the share of the way to the blurred, striped or pasted pixels, three times that but at most 1.
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("scratch", "blur", "stain", "stripe", "paste"),
        *,
        contrast: tuple[float, float] = (0.15, 0.4),
    ) -> None:
        for kind in kinds:
            if kind not in _MAKERS:
                raise UserError("defect", kind, _MAKERS)
        if not 0 < contrast[0] <= contrast[1] <= 1:
            raise UserError("contrast", contrast, "two numbers above 0 and up to 1, the smaller first")
        self.kinds, self.contrast = tuple(kinds), contrast

    def __call__(self, images: Tensor, *, seed: int = 0, other: Tensor | None = None) -> Defective:
        """Defects in ``images`` (uint8 ``[N, C, H, W]``, left as they are); ``other`` surfaces are pasted from.

        Raises:
            UserError: images of another type, or nothing to paste from.
        """
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise UserError("images", f"{images.dtype} {list(images.shape)}", "uint8 [N, C, H, W]")
        if "paste" in self.kinds and other is None:
            raise UserError("other", "none", "images of another surface, which paste takes its patches from")
        made, masks, contrasts = images.clone(), [], []
        kinds = torch.arange(len(images)) % len(self.kinds)
        for place, image in enumerate(images):
            random = np.random.default_rng((seed, place))
            contrast = float(random.uniform(*self.contrast))
            pixels = image.permute(1, 2, 0).double().numpy() / 255
            foreign = None if other is None else other[int(random.integers(len(other)))]
            patch = None if foreign is None else foreign.permute(1, 2, 0).double().numpy() / 255
            changed, mask = _MAKERS[self.kinds[int(kinds[place])]](pixels, contrast, random, patch)
            changed = np.where(mask[..., None], changed, pixels).clip(0, 1)
            made[place] = torch.from_numpy((changed * 255).round().astype(np.uint8)).permute(2, 0, 1)
            masks.append(torch.from_numpy(mask))
            contrasts.append(contrast)
        return Defective(made, torch.stack(masks), kinds, torch.tensor(contrasts))


Maker = Callable[[Pixels, float, np.random.Generator, Pixels | None], tuple[Pixels, Mask]]


def _scratch(pixels: Pixels, contrast: float, random: np.random.Generator, _: Pixels | None) -> tuple[Pixels, Mask]:
    rows, columns, scale = _grid(pixels)
    angle, length = random.uniform(0, np.pi), random.uniform(0.3, 0.8) * scale
    row, column = _centre(pixels, random)
    along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
    across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
    bend = random.uniform(-0.1, 0.1) * scale * (2 * along / length) ** 2
    mask = (np.abs(along) <= length / 2) & (np.abs(across - bend) <= max(0.01 * scale, 0.6))
    return pixels + contrast * random.choice([-1, 1]), mask


def _blur(pixels: Pixels, contrast: float, random: np.random.Generator, _: Pixels | None) -> tuple[Pixels, Mask]:
    share, sigma = min(3 * contrast, 1.0), 0.04 * min(pixels.shape[:2])
    blurred = gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    return pixels + share * (blurred - pixels), _spot(pixels, random)


def _stain(pixels: Pixels, contrast: float, random: np.random.Generator, _: Pixels | None) -> tuple[Pixels, Mask]:
    mask = _spot(pixels, random)
    soft = gaussian_filter(mask.astype(float), 0.02 * min(pixels.shape[:2]))
    tint = random.uniform(0.5, 1.0, pixels.shape[-1]) if pixels.shape[-1] > 1 else np.ones(1)
    return pixels + contrast * random.choice([-1, 1]) * soft[..., None] * tint, mask


def _stripe(pixels: Pixels, contrast: float, random: np.random.Generator, _: Pixels | None) -> tuple[Pixels, Mask]:
    if random.random() < 0.5:
        turned, mask = _row_missing(pixels.swapaxes(0, 1), contrast, random)
        return turned.swapaxes(0, 1), mask.T
    return _row_missing(pixels, contrast, random)


def _row_missing(pixels: Pixels, contrast: float, random: np.random.Generator) -> tuple[Pixels, Mask]:
    high, wide = pixels.shape[:2]
    thick = max(round(random.uniform(0.03, 0.06) * high), 2)
    top = int(random.integers(1, high - thick - 1))
    left = int(random.integers(0, wide // 2))
    right = min(left + int(random.uniform(0.4, 1.0) * wide), wide)
    mask = np.zeros((high, wide), bool)
    mask[top : top + thick, left:right] = True
    beside = (pixels[top - 1] + pixels[top + thick]) / 2
    return pixels + min(3 * contrast, 1.0) * (beside[None] - pixels), mask


def _paste(pixels: Pixels, contrast: float, random: np.random.Generator, other: Pixels | None) -> tuple[Pixels, Mask]:
    share = min(3 * contrast, 1.0)
    return pixels + share * ((pixels if other is None else other) - pixels), _spot(pixels, random)


def _spot(pixels: Pixels, random: np.random.Generator) -> Mask:
    """An ellipse of 8 to 22 percent of the image's side, turned."""
    rows, columns, scale = _grid(pixels)
    row, column = _centre(pixels, random)
    angle, radii = random.uniform(0, np.pi), random.uniform(0.04, 0.11, 2) * scale
    along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
    across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
    return np.asarray((along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1, dtype=bool)


def _grid(pixels: Pixels) -> tuple[Pixels, Pixels, int]:
    rows, columns = np.indices(pixels.shape[:2]).astype(float)
    return rows, columns, min(pixels.shape[:2])


def _centre(pixels: Pixels, random: np.random.Generator) -> tuple[int, int]:
    # On a pixel, so that a spot of any size covers at least one.
    row, column = (int(random.integers(int(0.2 * side), int(0.8 * side))) for side in pixels.shape[:2])
    return row, column


_MAKERS: dict[str, Maker] = {
    "scratch": _scratch,
    "blur": _blur,
    "stain": _stain,
    "stripe": _stripe,
    "paste": _paste,
}
