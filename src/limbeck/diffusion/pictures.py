"""Contact sheets of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError


def contact_sheet(images: Tensor, columns: int, *, gap: int = 1) -> NDArray[Any]:
    """Images ``[N, C, H, W]`` in [-1, 1], row by row, as one uint8 image ``[H', W']`` (C 1) or ``[H', W', 3]``.

    Args:
        columns: images of one row; missing ones at the end stay blank.
        gap: pixels between images.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images) or columns < 1:
        raise UserError("images", list(images.shape), "[N, 1 or 3, H, W] and at least one column")
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    height, width = pixels.shape[1] + gap, pixels.shape[2] + gap
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * height - gap, columns * width - gap, pixels.shape[3]), 255, dtype=np.uint8)
    for place, picture in enumerate(pixels):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + height - gap, left : left + width - gap] = picture
    return sheet[..., 0] if sheet.shape[2] == 1 else sheet
