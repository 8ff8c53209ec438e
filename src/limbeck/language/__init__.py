"""Causal language models that write: prompts and answers, generation, revision, replay, spans."""

from __future__ import annotations

from limbeck.language.generation import choose, generate
from limbeck.language.sequences import Sequences, answer_logits, left_aligned, positions

__all__ = ["Sequences", "answer_logits", "choose", "generate", "left_aligned", "positions"]
