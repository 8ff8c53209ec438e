"""Small text transformers: an encoder of words, and a fusion encoder whose words also look at an image's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.models.vit import Block, initialise


class TextEncoder(nn.Module):
    """A transformer over word numbers, in both directions. Taps: ``blocks.0`` ... (before the last norm), ``norm``.

    Args:
        vocabulary: numbers of words, 0 to ``vocabulary - 1``.
        width, depth, heads, expansion: of the blocks.
        length: longest text in tokens; positions are learned.
    """

    def __init__(
        self, vocabulary: int, width: int = 64, depth: int = 1, heads: int = 4, *, length: int = 32, expansion: int = 4
    ) -> None:
        super().__init__()
        self.vocabulary, self.width, self.length = vocabulary, width, length
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self)
        # BERT's start: words that begin far apart take long to be drawn together.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Normed tokens ``[B, L, width]`` of int64 ``[B, L]``; those with ``attention_mask`` 0 are padding."""
        if input_ids.shape[1] > self.length:
            raise UserError("input_ids", f"{input_ids.shape[1]} tokens", f"at most {self.length}")
        tokens = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        mask = None if attention_mask is None else attention_mask.bool()
        for block in self.blocks:
            tokens = block(tokens, mask)
        normed: Tensor = self.norm(tokens)
        return normed


class FusionBlock(Block):
    """A :class:`~limbeck.models.vit.Block` that, given other tokens, looks at them between attention and MLP.

    Without them it is a plain block: one network with a text mode and a fusion mode.
    """

    def __init__(self, width: int, heads: int, other_width: int, expansion: int = 4) -> None:
        super().__init__(width, heads, expansion)
        self.norm_cross = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(other_width, 2 * width)
        self.out_cross = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, others: Tensor | None = None) -> Tensor:
        """``[B, L, width]`` to the same shape; ``others`` ``[B, N, other width]`` are all looked at."""
        tokens = self.attend(tokens, mask)
        if others is not None:
            query = self.query(self.norm_cross(tokens)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            parts = self.key_value(others).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(query, parts[0], parts[1])
            tokens = tokens + self.out_cross(seen.transpose(1, 2).flatten(2))
        return self.transform(tokens)


class FusionEncoder(nn.Module):
    """Goes on with a text encoder's tokens, seeing an image's. Taps: ``blocks.0`` ..., ``norm``.

    Args:
        width, depth, heads, expansion: of the blocks; the width is the text encoder's.
        image_width: of the image's tokens.
    """

    def __init__(
        self, width: int = 64, depth: int = 1, heads: int = 4, *, image_width: int = 64, expansion: int = 4
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(width, heads, image_width, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, image_tokens: Tensor | None = None
    ) -> Tensor:
        """Normed tokens ``[B, L, width]``; without ``image_tokens`` ``[B, N, image width]`` the text's alone."""
        mask = None if attention_mask is None else attention_mask.bool()
        for block in self.blocks:
            tokens = block(tokens, mask, image_tokens)
        normed: Tensor = self.norm(tokens)
        return normed
