"""A generated woven cloth, plain or twill, with the defects of a loom and their exact masks.

Two families of threads cross; at every crossing one lies on top. Threads differ in thickness, brightness and path, so
no two images are alike. A defect changes the weave itself and not just the picture of it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from torch import Tensor

from limbeck.errors import UserError

#: ``float``: a thread passes over several others; ``broken``: a weft thread is missing; ``knot``: a thick bright lump.
DEFECTS = ("float", "broken", "knot")
_THREAD = 6


def woven(
    count: int, size: int = 64, *, seed: int = 0, defects: tuple[str, ...] = (), twill: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` images of cloth, with a defect each if any ``defects`` are named.

    Returns:
        images uint8 ``[N, 3, size, size]``; masks bool ``[N, size, size]``; kinds int64 ``[N]``, numbers in
        ``defects``.
    """
    for name in defects:
        if name not in DEFECTS:
            raise UserError("weave defect", name, DEFECTS)
    kinds = torch.arange(count) % max(len(defects), 1)
    made = [
        _cloth(size, np.random.default_rng((seed, place)), defects[int(kinds[place])] if defects else "", twill)
        for place in range(count)
    ]
    images = torch.stack([torch.from_numpy((pixels * 255).round().astype(np.uint8)) for pixels, _ in made])
    masks = torch.stack([torch.from_numpy(mask) for _, mask in made])
    return images.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), masks, kinds


def _cloth(
    size: int, random: np.random.Generator, defect: str, twill: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    number = size // _THREAD + 3
    weft, warp = np.indices((number, number))
    # Which family is on top at a crossing: over two under two, shifted by one, or in turn.
    on_top = ((weft + warp) % 4 < 2) if twill else ((weft + warp) % 2 == 0)
    pushed = random.integers(0, _THREAD, 2)
    rows, columns = np.indices((size, size)).astype(float)
    rows, columns = rows + pushed[0], columns + pushed[1]
    # Threads wander a little, each image in its own way.
    rows += gaussian_filter(random.normal(size=(size, size)), 6) * 8
    columns += gaussian_filter(random.normal(size=(size, size)), 6) * 8
    shade_weft, shade_warp = 0.55 + 0.05 * random.normal(size=number), 0.40 + 0.05 * random.normal(size=number)
    middle = number // 2
    at_row, at_column = (int(random.integers(middle - 2, middle + 3)) for _ in range(2))
    if defect == "float":
        length = int(random.integers(4, 6))
        here = slice(max(at_column - length // 2, 0), at_column + length // 2 + 1)
        changed = np.zeros_like(on_top)
        changed[at_row, here] = ~on_top[at_row, here]
        on_top = on_top | changed
    i = np.clip((rows // _THREAD).astype(int), 0, number - 1)
    j = np.clip((columns // _THREAD).astype(int), 0, number - 1)
    # A thread is round: bright along its middle, dark at its edges.
    profile = [np.sin(np.pi * (place % _THREAD) / _THREAD) ** 0.7 for place in (rows, columns)]
    over = on_top[i, j]
    mask = np.zeros((size, size), bool)
    light = np.where(over, shade_weft[i] * (0.6 + 0.4 * profile[0]), shade_warp[j] * (0.6 + 0.4 * profile[1]))
    if defect == "float":
        mask = changed[i, j]
    elif defect == "broken":
        mask = (i == at_row) & over
        light = np.where(mask, 0.22 + 0.1 * shade_warp[j] * profile[1], light)
    elif defect == "knot":
        r, c = (int(random.integers(size // 5, 4 * size // 5)) for _ in range(2))
        y, x = np.indices((size, size))
        lump = np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * (0.035 * size) ** 2))
        mask, light = lump > 0.2, light + 0.3 * lump
        light = np.where(mask, light, light - 0.3 * lump)
    yarn = gaussian_filter(random.normal(size=(size, size)), 0.6) * 0.06
    blurred = gaussian_filter(light, 0.6)
    # The picture's own blur spreads a defect by a pixel.
    return (blurred + yarn).clip(0, 1), binary_dilation(mask) if defect else mask
