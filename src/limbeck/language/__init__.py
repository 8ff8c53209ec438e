"""Causal language models that write (prompts and answers, generation, revision, replay, spans), and shorter prompts."""

from __future__ import annotations

from limbeck.language.compressors import Instructed, Known, Saliency
from limbeck.language.distiller import SequenceDistiller, check_tokenizers
from limbeck.language.generation import Decoding, choose, generate
from limbeck.language.keeping import Keeper
from limbeck.language.likelihood import continuation_log_likelihood, self_information
from limbeck.language.revision import Correction, Reviser, corrected_prefix, locate, token_divergence
from limbeck.language.sequences import Sequences, answer_logits, left_aligned, positions
from limbeck.language.spans import FUNCTION_WORDS, FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
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
    "AdaptiveShare",
    "Correction",
    "DataText",
    "Decoding",
    "FUNCTION_WORDS",
    "FunctionWordSpans",
    "Instructed",
    "Keeper",
    "Known",
    "OnPolicy",
    "RandomSpans",
    "ReplayBuffer",
    "Replayed",
    "Revised",
    "Reviser",
    "Saliency",
    "SequenceDistiller",
    "Sequences",
    "Step",
    "StoredText",
    "WindowSpans",
    "Writer",
    "answer_logits",
    "check_tokenizers",
    "choose",
    "continuation_log_likelihood",
    "corrected_prefix",
    "generate",
    "left_aligned",
    "locate",
    "pieces_of",
    "positions",
    "self_information",
    "token_divergence",
    "without_answers",
]
