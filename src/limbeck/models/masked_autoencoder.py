"""A small masked autoencoder (He et al., arXiv:2111.06377): encode some patches, predict the pixels of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.vit import Block, ViT, grid_positions, initialise
from limbeck.nn.patches import masking, restore_tokens, visible


class MaskedAutoencoder(nn.Module):
    """An encoder of the visible patches and a light decoder of all.

    It is called and it answers as transformers' ``ViTMAEForPreTraining`` does (less its loss), so that either can stand
    where the other stood. Taps: those of ``encoder`` (:class:`~limbeck.models.vit.ViT`), ``decoder.blocks.0`` ...

    Args:
        encoder: the network that is kept; give it to :class:`~limbeck.models.vit.ViTClassifier` afterwards.
        width, depth, heads: of the decoder.
        mask_ratio: share of patches that the encoder does not see; may be changed at any time.
    """

    def __init__(
        self, encoder: ViT, *, width: int = 32, depth: int = 1, heads: int = 4, mask_ratio: float = 0.75
    ) -> None:
        super().__init__()
        self.encoder, self.mask_ratio = encoder, mask_ratio
        self.decoder = Decoder(encoder, width, depth, heads)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Predictions for images ``[B, C, H, W]``.

        Args:
            noise: ``[B, L]``; the patches with the smallest are seen. Drawn at random if not given. Networks that are
                to see the same patches must be given the same noise.

        Returns:
            ``logits``: predicted patches ``[B, L, patch * patch * C]``; ``mask``: ``[B, L]``, 1 where a patch was
            hidden; ``ids_restore``: int64 ``[B, L]``.
        """
        if noise is None:
            noise = torch.rand(len(pixel_values), self.encoder.tokens, device=pixel_values.device)
        if noise.shape != (len(pixel_values), self.encoder.tokens):
            raise UserError("noise", list(noise.shape), f"{[len(pixel_values), self.encoder.tokens]}, one per patch")
        chosen = masking(noise, self.mask_ratio)
        predicted = self.decoder(self.encoder(pixel_values, chosen.keep), chosen.restore)
        return {"logits": predicted, "mask": chosen.masked.to(predicted.dtype), "ids_restore": chosen.restore}


class Decoder(nn.Module):
    """Mask tokens in the places of hidden patches, a few blocks, a linear map to pixels."""

    positions: Tensor

    def __init__(self, encoder: ViT, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", grid_positions(encoder.size // encoder.patch, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, encoder.patch**2 * encoder.in_channels)
        initialise(self)

    def forward(self, seen: Tensor, restore: Tensor) -> Tensor:
        """Patches ``[B, L, patch * patch * C]`` from the encoder's tokens ``[B, 1 + n, D]``, class token first."""
        tokens = self.embedding(seen)
        patches = restore_tokens(tokens[:, 1:], self.mask_token, restore) + self.positions
        tokens = torch.cat([tokens[:, :1], patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.pixels(self.norm(tokens[:, 1:]))
        return predicted


def set_mask_ratio(model: nn.Module, ratio: float) -> None:
    """Change the share of hidden patches of a :class:`MaskedAutoencoder` or of a transformers ViTMAE model."""
    visible(patch_grid(model)[1], ratio)
    holders: list[Any] = [part for part in model.modules() if isinstance(part, MaskedAutoencoder)]
    configs = [part.config for part in model.modules() if hasattr(getattr(part, "config", None), "mask_ratio")]
    for holder in [*holders, *configs]:
        holder.mask_ratio = ratio


@torch.no_grad()
def fill_positions(model: nn.Module) -> nn.Module:
    """Give a transformers ViTMAE made from a configuration its fixed positions, and return it.

    transformers 5.23 leaves them at zero there, and frozen, so that the network cannot tell one patch from another.
    Those of a pre-trained network are left as they are.
    """
    side = int(patch_grid(model)[1] ** 0.5)
    for name, positions in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")) and not positions.any():
            positions[0, 1:] = grid_positions(side, positions.shape[-1])
    return model


def mask_ratio_of(model: nn.Module) -> float:
    """The share of hidden patches of either kind of network."""
    holder: Any = model if hasattr(model, "mask_ratio") else getattr(model, "config", None)
    if not hasattr(holder, "mask_ratio"):
        raise UserError("model", type(model).__name__, "a MaskedAutoencoder or a transformers ViTMAE model")
    return float(holder.mask_ratio)


def patch_grid(model: nn.Module) -> tuple[int, int]:
    """Pixels along a patch and number of patches of either kind of network."""
    mask_ratio_of(model)
    config: Any = getattr(model, "config", None)
    if config is not None:
        return int(config.patch_size), (int(config.image_size) // int(config.patch_size)) ** 2
    encoder: Any = model.encoder
    return int(encoder.patch), int(encoder.tokens)
