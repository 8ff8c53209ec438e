"""A small vision transformer: blocks, an encoder that may see some patches only, a classifier around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.nn.patches import patchify, take_tokens


class Block(nn.Module):
    """A pre-norm transformer block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))`` with GELU."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise UserError("heads", heads, f"a divisor of the width, {width}")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, L, width]`` to the same shape; tokens whose bool ``mask`` ``[B, L]`` is False are not looked at."""
        return self.transform(self.attend(tokens, mask))

    def attend(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first half: every token takes from the others."""
        parts = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        wide = None if mask is None else mask[:, None, None, :]
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=wide)
        attended: Tensor = tokens + self.out(seen.transpose(1, 2).flatten(2))
        return attended

    def transform(self, tokens: Tensor) -> Tensor:
        """The second half: every token on its own."""
        changed: Tensor = tokens + self.down(functional.gelu(self.up(self.norm2(tokens))))
        return changed


class ViT(nn.Module):
    """An image encoder. Taps: ``embedding``, ``blocks.0`` ... (before the last norm), ``norm``.

    Args:
        size, patch, in_channels: of the square image, which is ``(size / patch)^2`` tokens and a class token in front.
        width, depth, heads, expansion: of the blocks.
        convolutions: embed patches by convolutions that halve the image until a patch is one pixel, instead of one
            linear map: small networks learn to see in far fewer steps (Xiao et al., Early Convolutions Help
            Transformers See Better, 2021). The patch is then a power of 2.
    """

    positions: Tensor

    def __init__(
        self,
        size: int = 28,
        patch: int = 4,
        width: int = 48,
        depth: int = 4,
        heads: int = 4,
        *,
        in_channels: int = 1,
        expansion: int = 4,
        convolutions: bool = False,
    ) -> None:
        super().__init__()
        if size % patch or (convolutions and patch & (patch - 1)):
            also = " and a power of 2" if convolutions else ""
            raise UserError("patch", patch, f"a divisor of the image size, {size}{also}")
        self.size, self.patch, self.width, self.in_channels = size, patch, width, in_channels
        self.tokens = (size // patch) ** 2
        self.convolutions = convolutions
        self.embedding: nn.Module = (
            convolution_stem(in_channels, width, patch)
            if convolutions
            else nn.Linear(patch * patch * in_channels, width)
        )
        self.class_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", grid_positions(size // patch, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normed tokens ``[B, 1 + n, width]``, the class token first; ``keep`` ``[B, n]`` chooses the patches seen."""
        if images.shape[-2:] != (self.size, self.size):
            raise UserError("images", list(images.shape), f"{self.size} x {self.size} pixels")
        # Convolutions look across patches, so those that are not seen have to go before a linear map but after these.
        patches = self.embedding(images) if self.convolutions else patchify(images, self.patch)
        positions = self.positions.expand(len(images), -1, -1)
        if keep is not None:
            patches, positions = take_tokens(patches, keep), take_tokens(positions, keep)
        first = self.class_token.expand(len(images), 1, -1)
        embedded = patches if self.convolutions else self.embedding(patches)
        tokens = torch.cat([first, embedded + positions], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class ViTClassifier(nn.Module):
    """An encoder and a linear head. Taps: ``encoder.blocks.0`` ..., ``head``.

    Args:
        pooling: what the head reads: the ``mean`` of the patch tokens, or the ``class_token``, as DeiT's. An encoder
            whose class token is used later should learn it here: under ``mean`` its last block never does.
    """

    def __init__(self, encoder: ViT, classes: int = 10, *, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "class_token"):
            raise UserError("pooling", pooling, ("mean", "class_token"))
        self.encoder, self.head, self.pooling = encoder, nn.Linear(encoder.width, classes), pooling
        initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""
        tokens = self.encoder(images)
        logits: Tensor = self.head(tokens[:, 1:].mean(1) if self.pooling == "mean" else tokens[:, 0])
        return logits


def convolution_stem(channels: int, width: int, patch: int) -> nn.Sequential:
    """Images ``[B, channels, H, W]`` to tokens ``[B, H W / patch^2, width]``: every layer halves the side, the
    first ones are narrower."""
    layers: list[nn.Module] = []
    halvings = patch.bit_length() - 1
    for left in range(halvings - 1, -1, -1):
        wide = max(width >> left, 8)
        layers += [nn.Conv2d(channels, wide, 3, stride=2, padding=1), nn.GELU()]
        channels = wide
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1), nn.Flatten(2), Transpose())


class Transpose(nn.Module):
    """``[B, C, L]`` to ``[B, L, C]``."""

    def forward(self, values: Tensor) -> Tensor:
        """Exchange the last two axes."""
        return values.mT


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed sine and cosine positions ``[side * side, width]`` of a square grid: half the width for the column, half
    for the row, each in ``width / 4`` wavelengths from 2 pi to 20,000 pi (Vaswani et al., 2017, in two dimensions)."""
    if width % 4:
        raise UserError("width", width, "a multiple of 4, for sines and cosines of row and column")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten().double()[:, None] * rates for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def initialise(module: nn.Module) -> None:
    """The start that MAE gives its transformers: Xavier-uniform weights, zero biases, small class and mask tokens."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in ("class_token", "mask_token"):
            nn.init.normal_(parameter, std=0.02)
