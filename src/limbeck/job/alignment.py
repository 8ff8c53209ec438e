"""A teacher of another tokenizer in a language model's job: its reading of the texts, and what it is compared on."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck import losses
from limbeck.cache.fingerprint import fingerprint_text, fingerprint_tokenizer
from limbeck.data.chats import Chat
from limbeck.data.split import Split, Splits
from limbeck.errors import UserError
from limbeck.language import (
    AlignmentReport,
    Decoding,
    Retokenizer,
    Sequences,
    answer_logits,
    taught_parts,
    with_log_probs,
)
from limbeck.language.retokenizer import prompts_of
from limbeck.models.chat_input import ChatInput, Encoded
from limbeck.models.compare import first_logits, shared_vocabulary
from limbeck.models.hf_networks import quiet
from limbeck.models.network import Network
from limbeck.objectives import LikelihoodMatching, Objective
from limbeck.signals import Forward

if TYPE_CHECKING:
    from limbeck.job.language import Language
    from limbeck.job.teachers import SignalChoice

# Texts that the report of a plan is measured on.
_SAMPLE = 64
_ONE_NUMBER = 'likelihood_matching(teacher="log_probs")'


@dataclass
class Alignment:
    """How a teacher reads texts that are cut by the student's tokenizer.

    Attributes:
        retokenizer: cuts them anew. vocabulary: rows of the teacher's logits, where it has padding behind them.
        own_prompts: whether the teacher reads conversations by its own template.
        report: of a sample of the training texts. ratio: the teacher's tokens per learnt token of the student.
    """

    retokenizer: Retokenizer
    vocabulary: int | None
    own_prompts: bool
    report: AlignmentReport
    ratio: float

    def forward(self) -> Forward:
        """How to run the teacher: ``logits`` and ``log_probs`` of its own tokens."""
        run: Any = answer_logits if self.vocabulary is None else first_logits(answer_logits, self.vocabulary)
        return with_log_probs(run)

    def read(self, given: Mapping[str, Tensor]) -> Sequences:
        """The teacher's tokens of a batch's input."""
        return self.retokenizer(Sequences.of(given), prompts_of(given)).teacher

    def decoding(self, how: Decoding) -> Decoding:
        """The same way of writing with the teacher's own end of text."""
        end = self.retokenizer.teacher.tokenizer.eos_token_id
        return replace(how, end=end, pad=self.retokenizer.pad)

    def fingerprint(self, samples: Sequence[Encoded]) -> dict[str, str]:
        """Of what decides the teacher's tokens, besides the student's."""
        sides = [fingerprint_tokenizer(side.tokenizer) for side in (self.retokenizer.student, self.retokenizer.teacher)]
        prompts = [one.teacher_prompt.tolist() for one in samples if one.teacher_prompt is not None]
        return {"alignment": fingerprint_text(sides, self.retokenizer.max_length, prompts)}

    def describe(self) -> list[str]:
        """Sentences for the plan."""
        found, told = self.report.summary(), []
        told.append(
            f"of {self.report.rows} training texts {found['one_to_one']:.0%} of the spans are one token on both sides; "
            f"{found['student_tokens_per_span']:.2f} student and {found['teacher_tokens_per_span']:.2f} teacher tokens "
            f"a span; {found['unaligned']:.1%} of the text is in no span, {found['truncated']:.0%} of the texts are "
            f"cut for the teacher, {found['inexact']:.0%} are changed by its tokenizer"
        )
        if self.own_prompts:
            told.append("the teacher reads prompts by its own chat template")
        return told


def align(language: Language, teacher: Network, student: Network, raw: Splits) -> Alignment:
    """Prepare the texts of a job for a teacher of another tokenizer; its prompts are put beside the samples.

    Args:
        raw: samples as the data have them, row for row those of ``language.splits``.

    Raises:
        UserError: a tokenizer whose tokens do not spell the text, or texts that share no boundary.
    """
    if not isinstance(teacher.prepare, ChatInput):
        raise UserError("teacher", teacher.reference, "a language model of transformers, with its tokenizer")
    positions = int(getattr(teacher.module.config, "max_position_embeddings", 0) or 0) or None  # type: ignore[union-attr, arg-type]
    reader = copy.copy(teacher.prepare)
    reader.max_length = positions or reader.max_length
    parts = ("train", "validation", "test")
    samples: dict[str, Any] = {part: getattr(raw, part).input for part in parts}
    own = all(isinstance(one, Chat) and not one.is_plain for part in parts for one in samples[part])
    if own:
        with quiet():
            language.splits = Splits(**{
                part: _with_prompts(getattr(language.splits, part), samples[part], reader) for part in parts
            })  # fmt: skip
    retokenizer = Retokenizer(student.tokenizer, teacher.tokenizer, max_length=positions)
    vocabulary = shared_vocabulary(teacher, teacher)
    made = Alignment(retokenizer, vocabulary, own, AlignmentReport(), 1.0)
    language.alignment = made
    texts: Any = language.splits.train.input
    given = language.columns([texts[place] for place in range(0, len(texts), max(1, len(texts) // _SAMPLE))][:_SAMPLE])
    text = Sequences.of(given)
    found = retokenizer(text, prompts_of(given))
    made.report, learnt = found.report, int(text.counted.sum())
    made.ratio = int(found.teacher.counted.sum()) / max(learnt, 1)
    if learnt and not found.report.spans:
        raise UserError("student tokenizer", "no common boundary with the teacher's", "one that cuts some text alike")
    return made


def _with_prompts(split: Split, chats: Sequence[Chat], reader: ChatInput) -> Split:
    samples: Any = split.input
    told = [replace(one, teacher_prompt=_prompt(reader, chat)) for one, chat in zip(samples, chats, strict=True)]
    return replace(split, input=told)


def _prompt(reader: ChatInput, chat: Chat) -> Tensor:
    """What leads to the first answer, as the teacher's template writes it."""
    first = (place for place, (role, _) in enumerate(chat.turns) if role == "assistant" and place)
    return reader.encode(Chat(chat.turns[: next(first, len(chat.turns))])).ids


def aligned_signals(signals: SignalChoice, objective: Objective, teachers: Collection[Network]) -> SignalChoice:
    """The signals of a teacher of another tokenizer, with the codec of a cache.

    Raises:
        UserError: a kind of signals, or several teachers, that spans cannot be compared with.
    """
    if len(teachers) > 1:
        raise UserError("teacher", f"{len(teachers)} teachers", "one, for an objective on aligned spans")
    if signals.kind in ("hidden", "server"):
        hint = "spans need the log-probabilities of the teacher's own tokens, or whole logits"
        raise UserError("signals", str(signals), "live or cache, across tokenizers", hint)
    if not signals.cached:
        return signals
    for part in taught_parts(objective):
        if isinstance(part, LikelihoodMatching) and "logits" in part.needs.teacher:
            hint = "the largest log-probabilities do not tell what every token has"
            raise UserError("signals", "cache, with likelihood_matching", f"live, or {_ONE_NUMBER}", hint)
    return replace(signals, codec=signals.codec if "logits" in objective.needs.teacher else "float32")


def span_sums(student: Tensor, teacher: Tensor, spans: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of all spans of a batch ``[N]``, by student and teacher, from those of their tokens."""
    count = int(max(side.max() if side.numel() else -1 for side in spans.values())) + 1
    sums = [
        losses.span_sums(side, spans[name], max(count, 1))
        for name, side in (("student", student), ("teacher", teacher))
    ]
    there = torch.arange(max(count, 1), device=student.device) <= spans["student"].max(1, keepdim=True).values
    return sums[0][there], sums[1][there]
