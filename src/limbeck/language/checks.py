"""What must hold before a language model is distilled: one vocabulary, and text of whom an estimator thinks it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.errors import UserError
from limbeck.language.writers import DataText, OnPolicy, Replayed, Revised, StoredText, Writer
from limbeck.models.compare import OTHER_TOKENS, tokenizer_difference
from limbeck.objectives import AlignedObjective, Divergence, Objective, Scaled, Sum


def check_tokenizers(student: nn.Module, teacher: nn.Module | None, tokenizers: tuple[Any, Any] | None = None) -> None:
    """Refuse two models of different vocabularies: what one calls token 17 is another word to the other.

    Args:
        student, teacher: transformers models, whose tables must have one size: all that can be told without
            tokenizers, and no proof.
        tokenizers: the student's and the teacher's, if at hand: then their content is compared
            (:func:`~limbeck.models.compare.tokenizer_difference`), and tables may be padded.

    Raises:
        UserError: they differ.
    """
    if tokenizers is not None:
        ours, theirs = tokenizers
        difference = tokenizer_difference(theirs, ours)
        if difference:
            raise UserError("student tokenizer", difference, "the teacher's vocabulary and rules", OTHER_TOKENS)
        return
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            "teacher's vocabulary", f"{sizes[1]} tokens", f"the student's, {sizes[0]}",
            f"both must use one tokenizer. {OTHER_TOKENS}",
        )  # fmt: skip


def check_writer(objective: Objective, writer: Writer) -> None:
    """Refuse a sampled estimator (``k1``, ``k3``) on text that its sampler did not write.

    Whether the data, or stored texts, are the teacher's own samples is for the caller to know.
    """
    for part in objective.modules():
        if not isinstance(part, Divergence) or part.text_of is None:
            continue
        key = f"{part.name} estimator {part.estimator}"
        if part.text_of == "teacher":
            if not isinstance(writer, (DataText, StoredText)):
                raise UserError(key, f"text by {type(writer).__name__}", "text that the teacher wrote: StoredText")
            continue
        if not isinstance(writer, OnPolicy):
            hint = "estimator='full' is right on any text"
            raise UserError(key, f"text by {type(writer).__name__}", "samples of the present student: OnPolicy", hint)
        temperature, decoding = part.options.get("temperature", 1.0), writer.decoding
        cut = decoding.top_p != 1 or getattr(decoding, "top_k", None) is not None
        if cut or decoding.temperature != temperature:
            raise UserError(
                key,
                f"samples at temperature {decoding.temperature} and top_p {decoding.top_p}",
                f"samples of what is compared: temperature {temperature}, top_p 1",
            )


def check_alignment(objective: Objective, writer: Writer, retokenized: bool) -> None:
    """Refuse to compare tokens of two tokenizers place by place, or spans where there are none."""
    for part in taught_parts(objective):
        name, aligned = type(part).__name__, isinstance(part, AlignedObjective)
        if aligned and not retokenized:
            raise UserError(name, "no retokenizer", "SequenceDistiller(retokenizer=...), which aligns the texts")
        if retokenized and not aligned:
            raise UserError(
                f"objective {name}", "a teacher of another tokenizer", "LikelihoodMatching, UniversalLogitDistance",
                "it would compare different places of the text",
            )  # fmt: skip
    if retokenized and asks_teacher(writer):
        raise UserError("writer", type(writer).__name__, "one that asks no teacher", "it has another tokenizer")


def taught_parts(objective: Objective) -> list[Objective]:
    """The terms of an objective that look at a teacher."""
    parts = [part for part in objective.modules() if isinstance(part, Objective)]
    return [part for part in parts if part.needs.teacher and not isinstance(part, (Sum, Scaled))]


def is_aligned(objective: Objective) -> bool:
    """Whether all that an objective asks of a teacher is compared on aligned spans, whatever its tokenizer."""
    parts = taught_parts(objective)
    return bool(parts) and all(isinstance(part, AlignedObjective) for part in parts)


def asks_teacher(writer: Writer) -> bool:
    """Whether a writer lets the teacher read the student's tokens."""
    return isinstance(writer, Revised) or (isinstance(writer, Replayed) and asks_teacher(writer.writer))
