"""Causal language models that write: prompts and answers, generation, revision, replay, spans."""

from __future__ import annotations

from limbeck.language.distiller import SequenceDistiller, check_tokenizers
from limbeck.language.generation import Decoding, choose, generate
from limbeck.language.heads import answer_hidden, has_plain_head, head_of
from limbeck.language.revision import Correction, Reviser, corrected_prefix, locate, token_divergence
from limbeck.language.sequences import Sequences, answer_logits, left_aligned, positions
from limbeck.language.spans import FUNCTION_WORDS, FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
from limbeck.language.text import corrects, parse_text, writes
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
    "answer_hidden",
    "answer_logits",
    "check_tokenizers",
    "choose",
    "corrected_prefix",
    "corrects",
    "generate",
    "has_plain_head",
    "head_of",
    "left_aligned",
    "locate",
    "parse_text",
    "pieces_of",
    "positions",
    "token_divergence",
    "without_answers",
    "writes",
]
