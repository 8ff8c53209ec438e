"""Causal language models that write: prompts and answers, generation, revision, replay, spans."""

from __future__ import annotations

from limbeck.language.candidates import CandidateClassifier, answer_scores, candidate_scores
from limbeck.language.compression import BehindPrefix, ContextCompressor, SharedPrompt
from limbeck.language.distiller import SequenceDistiller, check_tokenizers
from limbeck.language.generation import Decoding, choose, generate
from limbeck.language.in_context import (
    InContext,
    Prefix,
    full_context_logits,
    grouped,
    in_context_batch,
    pack_demonstrations,
    prefixed_logits,
)
from limbeck.language.revision import Correction, Reviser, corrected_prefix, locate, token_divergence
from limbeck.language.sequences import Sequences, answer_logits, left_aligned, pad_rows, positions
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
    "FUNCTION_WORDS",
    "AdaptiveShare",
    "BehindPrefix",
    "CandidateClassifier",
    "ContextCompressor",
    "Correction",
    "DataText",
    "Decoding",
    "FunctionWordSpans",
    "InContext",
    "OnPolicy",
    "Prefix",
    "RandomSpans",
    "ReplayBuffer",
    "Replayed",
    "Reviser",
    "Revised",
    "SequenceDistiller",
    "Sequences",
    "Step",
    "SharedPrompt",
    "StoredText",
    "WindowSpans",
    "Writer",
    "answer_logits",
    "answer_scores",
    "candidate_scores",
    "check_tokenizers",
    "choose",
    "corrected_prefix",
    "full_context_logits",
    "generate",
    "grouped",
    "in_context_batch",
    "left_aligned",
    "locate",
    "pack_demonstrations",
    "pad_rows",
    "pieces_of",
    "positions",
    "prefixed_logits",
    "token_divergence",
    "without_answers",
]
