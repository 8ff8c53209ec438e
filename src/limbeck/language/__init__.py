"""Causal language models that write: prompts and answers, generation, revision, replay, spans."""

from __future__ import annotations

from limbeck.language.distiller import SequenceDistiller, check_tokenizers
from limbeck.language.generation import Decoding, choose, generate
from limbeck.language.revision import Correction, Reviser, corrected_prefix, locate, token_divergence
from limbeck.language.sequences import (
    Sequences,
    answer_head,
    answer_hidden,
    answer_logits,
    check_head,
    left_aligned,
    positions,
)
from limbeck.language.spans import FUNCTION_WORDS, FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
from limbeck.language.text import parse_text, writes
from limbeck.language.writers import (
    AdaptiveShare,
    DataText,
    Mixed,
    OnPolicy,
    ReplayBuffer,
    Replayed,
    Revised,
    Step,
    StoredText,
    Writer,
    without_answers,
)

__all__ = [
    "FUNCTION_WORDS",
    "AdaptiveShare",
    "Correction",
    "DataText",
    "Decoding",
    "FunctionWordSpans",
    "Mixed",
    "OnPolicy",
    "RandomSpans",
    "ReplayBuffer",
    "Replayed",
    "Reviser",
    "Revised",
    "SequenceDistiller",
    "Sequences",
    "Step",
    "StoredText",
    "WindowSpans",
    "Writer",
    "answer_head",
    "answer_hidden",
    "answer_logits",
    "check_head",
    "check_tokenizers",
    "choose",
    "corrected_prefix",
    "generate",
    "left_aligned",
    "locate",
    "parse_text",
    "pieces_of",
    "positions",
    "token_divergence",
    "without_answers",
    "writes",
]
