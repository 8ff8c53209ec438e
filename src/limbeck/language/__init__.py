"""Causal language models that write (prompts and answers, generation, revision, replay, spans), and shorter prompts."""

from __future__ import annotations

from limbeck.language.alignment import AlignmentReport, Cutter, match_spans
from limbeck.language.candidates import CandidateClassifier, answer_scores, candidate_scores
from limbeck.language.checks import check_alignment, check_tokenizers, check_writer, is_aligned, taught_parts
from limbeck.language.compressors import Instructed, Known, Saliency
from limbeck.language.distiller import SequenceDistiller
from limbeck.language.generation import Decoding, Generator, choose, generate
from limbeck.language.in_context import (
    InContext,
    Prefix,
    full_context_logits,
    grouped,
    in_context_batch,
    pack_demonstrations,
    prefixed_logits,
)
from limbeck.language.keeping import Keeper
from limbeck.language.likelihood import continuation_log_likelihood, self_information
from limbeck.language.packing import packed
from limbeck.language.prefixes import BehindPrefix, ContextCompressor, SharedPrompt
from limbeck.language.retokenizer import Retokenized, Retokenizer
from limbeck.language.revision import Correction, Reviser, corrected_prefix, locate, token_divergence
from limbeck.language.sequences import (
    Sequences,
    answer_head,
    answer_hidden,
    answer_logits,
    check_head,
    left_aligned,
    pad_rows,
    positions,
    with_log_probs,
)
from limbeck.language.served import ServedDecoding
from limbeck.language.spans import FUNCTION_WORDS, FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
from limbeck.language.text import parse_text, writes
from limbeck.language.texts import write_texts
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
    TeacherText,
    Writer,
    without_answers,
)

__all__ = [
    "AdaptiveShare",
    "AlignmentReport",
    "BehindPrefix",
    "CandidateClassifier",
    "ContextCompressor",
    "Correction",
    "Cutter",
    "DataText",
    "Decoding",
    "FUNCTION_WORDS",
    "FunctionWordSpans",
    "Generator",
    "InContext",
    "Instructed",
    "Keeper",
    "Known",
    "Mixed",
    "OnPolicy",
    "Prefix",
    "RandomSpans",
    "ReplayBuffer",
    "Replayed",
    "Retokenized",
    "Retokenizer",
    "Revised",
    "Reviser",
    "Saliency",
    "SequenceDistiller",
    "Sequences",
    "ServedDecoding",
    "SharedPrompt",
    "Step",
    "StoredText",
    "TeacherText",
    "WindowSpans",
    "Writer",
    "answer_head",
    "answer_hidden",
    "answer_logits",
    "answer_scores",
    "candidate_scores",
    "check_alignment",
    "check_head",
    "check_tokenizers",
    "check_writer",
    "choose",
    "continuation_log_likelihood",
    "corrected_prefix",
    "full_context_logits",
    "generate",
    "grouped",
    "in_context_batch",
    "is_aligned",
    "left_aligned",
    "locate",
    "match_spans",
    "pack_demonstrations",
    "packed",
    "pad_rows",
    "parse_text",
    "pieces_of",
    "positions",
    "prefixed_logits",
    "self_information",
    "taught_parts",
    "token_divergence",
    "with_log_probs",
    "without_answers",
    "write_texts",
    "writes",
]
