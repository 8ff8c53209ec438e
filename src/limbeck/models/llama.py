"""Small Llama models of transformers with random weights, which testbeds train."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from limbeck.errors import require


@dataclass(frozen=True)
class LlamaSizes:
    """Of a Llama model whose input and output embeddings are one."""

    width: int
    depth: int
    heads: int


def llama(
    sizes: LlamaSizes, vocabulary: int, length: int, *, pad: int, start: int | None = None, end: int | None = None
) -> nn.Module:
    """A model that reads up to ``length`` tokens; ``pad``, ``start`` and ``end`` are special ones of its vocabulary."""
    transformers = require("transformers", "language")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=sizes.width, intermediate_size=sizes.width * 8 // 3,
        num_hidden_layers=sizes.depth, num_attention_heads=sizes.heads, max_position_embeddings=length,
        tie_word_embeddings=True, pad_token_id=pad, bos_token_id=start, eos_token_id=end,
    )  # fmt: skip
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made
