"""Small encoder-decoder language models, and decoder-only ones of as many weights to set beside them.

The classes are transformers' own: T5Gemma and Gemma 2 have the same blocks (grouped-query attention, rotary positions
in self-attention and none in cross-attention, RMSNorm, gated tanh-GELU) and caches of keys and values, for the
cross-attention too, so what is trained here is saved and served as any model of theirs. Both differ from the published
"Mu" in a second norm behind every part, a gate in the MLP, and heads that must divide the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, T5GemmaConfig, T5GemmaForConditionalGeneration

from limbeck.errors import UserError


@dataclass(frozen=True)
class BlockSizes:
    """Of one transformer block.

    Attributes:
        width: of the hidden states. heads, kv_heads: of queries, and of keys and values; the first are a multiple of
            the second and divide the width. mlp: inner width; None for three times the width.
        dropout: of blocks and embeddings (published: 0.1).
    """

    width: int
    heads: int
    kv_heads: int
    mlp: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.kv_heads < 1 or self.heads % self.kv_heads:
            given = f"{self.heads} and {self.kv_heads} at width {self.width}"
            raise UserError("heads, kv_heads", given, "heads that divide the width, kv_heads that divide the heads")

    def config(self, vocabulary: int, layers: int, special: dict[str, int]) -> dict[str, Any]:
        """What T5Gemma's and Gemma 2's configurations have in common: no windows, no capped logits."""
        head = self.width // self.heads
        return {
            "vocab_size": vocabulary, "hidden_size": self.width, "intermediate_size": self.mlp or 3 * self.width,
            "num_hidden_layers": layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": head, "query_pre_attn_scalar": head, "layer_types": ["full_attention"] * layers,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": True, **special,
        }  # fmt: skip


class SharedT5Gemma(T5GemmaForConditionalGeneration):
    """T5Gemma with one table of embeddings for encoder, decoder and head; its own class shares the last two."""

    _tied_weights_keys = {
        "lm_head.out_proj.weight": "model.decoder.embed_tokens.weight",
        "model.encoder.embed_tokens.weight": "model.decoder.embed_tokens.weight",
    }


def encoder_decoder(
    blocks: BlockSizes, encoder_layers: int, decoder_layers: int, *, vocabulary: int, pad: int, start: int, end: int
) -> SharedT5Gemma:
    """An untrained encoder-decoder; ``start`` is the decoder's first token.

    Published: two thirds of the layers in the encoder. Every decoder layer has a cross-attention more.
    """
    special: dict[str, Any] = {"pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}
    config = T5GemmaConfig(
        encoder=blocks.config(vocabulary, encoder_layers, special),
        decoder=blocks.config(vocabulary, decoder_layers, special),
        vocab_size=vocabulary, dropout_rate=blocks.dropout, tie_word_embeddings=True,
        **special | {"decoder_start_token_id": start},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return SharedT5Gemma(config)


def decoder_only(
    blocks: BlockSizes, layers: int, *, vocabulary: int, pad: int, start: int, end: int
) -> Gemma2ForCausalLM:
    """An untrained causal model of the same blocks. It has no dropout but in attention."""
    special: dict[str, Any] = {"pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}
    config = Gemma2Config(**blocks.config(vocabulary, layers, special), attention_dropout=blocks.dropout)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def twin(
    blocks: BlockSizes, encoder_layers: int, decoder_layers: int, *, tolerance: float = 0.02, **names: int
) -> Gemma2ForCausalLM:
    """The decoder-only model of as many layers and, by the inner width of its MLPs, as many weights.

    Raises:
        UserError: no inner width comes within ``tolerance`` of the weights, embeddings apart.
    """
    layers = encoder_layers + decoder_layers
    with torch.device("meta"):
        wanted = core_parameters(encoder_decoder(blocks, encoder_layers, decoder_layers, **names))
        narrow = core_parameters(decoder_only(_with_mlp(blocks, 1), layers, **names))
    # An MLP has three matrices of width times inner width.
    mlp = max(round((wanted - narrow) / (3 * blocks.width * layers)) + 1, 1)
    made = decoder_only(_with_mlp(blocks, mlp), layers, **names)
    if abs(core_parameters(made) / wanted - 1) > tolerance:
        raise UserError("twin", core_parameters(made), f"{wanted} weights, to within {tolerance:.0%}")
    return made


def core_parameters(model: nn.Module) -> int:
    """Weights without the embeddings, which a small model with a large vocabulary mostly consists of."""
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    return sum(value.numel() for value in model.parameters() if id(value) not in tables)


def _with_mlp(blocks: BlockSizes, mlp: int) -> BlockSizes:
    return BlockSizes(blocks.width, blocks.heads, blocks.kv_heads, mlp, blocks.dropout)
