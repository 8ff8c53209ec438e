"""Images as sequences of patches, and which patches a masked network sees.

The order of patches (row by row) and of numbers inside a patch (rows, columns, channels) is that of MAE and of
transformers' ``ViTMAEForPreTraining``; so is the rule that turns noise into a mask. Two networks that get the same
noise therefore see the same patches in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError


def patchify(images: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` as patches ``[B, L, patch * patch * C]``, ``L = (H / patch) (W / patch)``."""
    if images.dim() != 4 or images.shape[2] % patch or images.shape[3] % patch:
        raise UserError("images", list(images.shape), f"[B, C, H, W] with H and W multiples of the patch size, {patch}")
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """Images ``[B, channels, H, W]`` of patches ``[B, L, patch * patch * channels]``; square if no (H, W) is given."""
    side = round(patches.shape[1] ** 0.5)
    rows, columns = (side, side) if size is None else (size[0] // patch, size[1] // patch)
    if rows * columns != patches.shape[1] or patches.shape[2] != patch * patch * channels:
        raise UserError("patches", list(patches.shape), f"[B, {rows * columns}, {patch * patch * channels}]")
    grid = patches.reshape(len(patches), rows, columns, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), channels, rows * patch, columns * patch)


def standardise(patches: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Every patch with mean 0 and deviation 1 of its own numbers (unbiased variance, as MAE has it)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + epsilon).sqrt()


class Masking(NamedTuple):
    """Which patches are seen: ``keep`` int64 ``[B, n]`` in the order in which the encoder gets them, ``restore`` int64
    ``[B, L]`` which puts (seen, masked) back in the image's order, ``masked`` bool ``[B, L]`` in the image's order."""

    keep: Tensor
    restore: Tensor
    masked: Tensor


def visible(tokens: int, ratio: float) -> int:
    """How many of ``tokens`` patches are seen at a mask ratio: ``int(tokens (1 - ratio))``.

    Raises:
        UserError: the ratio lies outside [0, 1), or nothing would be seen.
    """
    if not 0 <= ratio < 1:
        raise UserError("mask ratio", ratio, "0 to below 1")
    seen = int(tokens * (1 - ratio))
    if not seen:
        raise UserError("mask ratio", ratio, f"at most {1 - 1 / tokens:.4g}, which leaves one of {tokens} patches")
    return seen


def masking(noise: Tensor, ratio: float) -> Masking:
    """Keep the patches with the smallest ``noise`` ``[B, L]``, smallest first."""
    seen = visible(noise.shape[1], ratio)
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Masking(order[:, :seen], restore, restore >= seen)


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens ``[B, n, D]`` at the positions ``index`` ``[B, n]`` of ``tokens`` ``[B, L, D]``."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def restore_tokens(seen: Tensor, filler: Tensor, restore: Tensor) -> Tensor:
    """All tokens ``[B, L, D]`` in the image's order: ``seen`` ``[B, n, D]`` in place, ``filler`` ``[D]`` elsewhere."""
    rest = filler.expand(len(seen), restore.shape[1] - seen.shape[1], -1)
    return take_tokens(torch.cat([seen, rest], dim=1), restore)
