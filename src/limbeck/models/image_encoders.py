"""Small image encoders that end in SAM's neck: convolutions first, then (if wanted) attention between them."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.models.segment_anything import neck
from limbeck.models.vit import Block, grid_positions


class HybridEncoder(nn.Module):
    """Images ``[B, 3, S, S]`` to ``[B, out, S / 4, S / 4]``. Taps: ``stem``, ``blocks.0`` ..., ``neck``.

    Args:
        stem: channels at half the size. width: at a quarter.
        local: convolution blocks at half the size. depth: blocks at a quarter.
        heads: of an attention block behind every convolution block at a quarter; 0 for convolutions alone.
        expansion: of the convolution blocks. out: channels of the embedding.
    """

    def __init__(
        self, *, stem: int, width: int, local: int, depth: int, heads: int = 0, expansion: int = 2, out: int = 64
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1), nn.GroupNorm(1, stem), nn.GELU(),
            *(ConvBlock(stem, expansion) for _ in range(local)),
            nn.Conv2d(stem, width, 3, 2, 1), nn.GroupNorm(1, width),
        )  # fmt: skip
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(ConvBlock(width, expansion))
            if heads:
                blocks.append(MapBlock(width, heads, expansion))
        self.blocks = nn.Sequential(*blocks)
        self.neck = neck(width, out)

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.neck(self.blocks(self.stem(images)))
        return embedding


class ConvBlock(nn.Module):
    """``x + narrow(gelu(widen(norm(depthwise(x)))))`` on maps (Liu et al., A ConvNet for the 2020s, CVPR 2022)."""

    def __init__(self, channels: int, expansion: int = 2, kernel: int = 5) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.widen, self.narrow = (
            nn.Conv2d(channels, expansion * channels, 1),
            nn.Conv2d(expansion * channels, channels, 1),
        )
        self.active = nn.GELU()

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = maps + self.narrow(self.active(self.widen(self.norm(self.local(maps)))))
        return changed


class MapBlock(nn.Module):
    """A transformer block on the cells of a square map, whose places are added for it alone."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.block = Block(width, heads, expansion)

    def forward(self, maps: Tensor) -> Tensor:
        side = maps.shape[-1]
        places = grid_positions(side, maps.shape[1]).to(maps)
        tokens = self.block(maps.flatten(2).transpose(1, 2) + places)
        changed: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
        return changed
