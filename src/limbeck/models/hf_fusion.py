"""The layers of transformers' BERT as a fusion encoder: they read an image's tokens by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from limbeck.errors import UserError, require

EXTRA = "language"


class BertFusion(nn.Module):
    """BERT layers with cross-attention that go on with a text encoder's tokens, looking both ways along the text.

    transformers builds cross-attention into decoders only, whose self-attention looks back alone; here the layers are
    a decoder's and the direction is undone, as ALBEF's own BERT has it.

    Args:
        layers: of a ``BertModel`` with ``is_decoder=True, add_cross_attention=True``.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for layer in layers:
            if not hasattr(layer, "crossattention"):
                hint = "make the model with is_decoder=True, add_cross_attention=True"
                raise UserError("layers", type(layer).__name__, "BERT layers with cross-attention", hint)
        if not layers:
            raise UserError("layers", "none", "at least one BERT layer")
        self.layers = nn.ModuleList(layers)
        for layer in self.layers:
            attention: Any = layer.attention
            attention.self.is_causal = False

    @classmethod
    def from_config(cls, config: Any, depth: int | None = None) -> BertFusion:
        """Fresh layers for a ``BertConfig``; ``encoder_hidden_size`` in it is not needed, widths of text and image
        must agree."""
        transformers = require("transformers", EXTRA)
        wanted = {**config.to_dict(), "is_decoder": True, "add_cross_attention": True, "use_cache": False}
        if depth is not None:
            wanted["num_hidden_layers"] = depth
        model = transformers.BertModel(transformers.BertConfig(**wanted), add_pooling_layer=False)
        return cls(list(model.encoder.layer))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None, image_tokens: Tensor) -> Tensor:
        """``[B, L, W]`` of tokens ``[B, L, W]``, mask ``[B, L]`` and image tokens ``[B, N, W]``."""
        shape = (len(tokens), 1, tokens.shape[1], tokens.shape[1])
        # Always a whole mask: without one the attention kernels fall back on the layer's own direction.
        mask = tokens.new_zeros(shape)
        if attention_mask is not None:
            hidden = (attention_mask == 0)[:, None, None, :].expand(shape)
            mask = mask.masked_fill(hidden, float("-inf"))
        for layer in self.layers:
            tokens = layer(tokens, mask, image_tokens)
        return tokens
