"""Causal language models that write: prompts and answers, generation, revision, replay, spans."""

from __future__ import annotations

from limbeck.language.distiller import SequenceDistiller, check_tokenizers
from limbeck.language.generation import Decoding, Generator, choose, generate
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
from limbeck.language.served import ServedDecoding
from limbeck.language.spans import FUNCTION_WORDS, FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
from limbeck.language.texts import write_texts
from limbeck.language.writers import (
    AdaptiveShare,
    DataText,
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
    "Generator",
    "OnPolicy",
    "RandomSpans",
    "ReplayBuffer",
    "Replayed",
    "Reviser",
    "Revised",
    "SequenceDistiller",
    "Sequences",
    "ServedDecoding",
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
    "pieces_of",
    "positions",
    "token_divergence",
    "without_answers",
    "write_texts",
]
