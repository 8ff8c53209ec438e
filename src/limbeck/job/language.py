"""The texts of a language model's job: tokens with what is learnt, their batches, and the distiller that reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_tensors
from limbeck.data.chats import prompts_of
from limbeck.data.loaders import TensorLoader
from limbeck.data.references import DataSet
from limbeck.data.split import Split, Splits
from limbeck.errors import LimbeckError, UserError
from limbeck.job.served import readable
from limbeck.job.teachers import ROUTE, SignalChoice
from limbeck.language import (
    Decoding,
    SequenceDistiller,
    Sequences,
    TeacherText,
    Writer,
    answer_head,
    answer_hidden,
    answer_logits,
    check_head,
    parse_text,
    writes,
)
from limbeck.models.chat_input import ChatInput, Counts, Encoded
from limbeck.models.compare import first_logits
from limbeck.models.hf_networks import quiet
from limbeck.models.network import Network
from limbeck.nn.mode import evaluating
from limbeck.objectives import Objective
from limbeck.signals import Forward, move
from limbeck.sources import Source

if TYPE_CHECKING:
    from limbeck.job.alignment import Alignment
    from limbeck.job.plan import Plan

_DECODING = {"temperature": 1.0, "top_p": 1.0, "length": 64}
_PARTS = ("train", "validation", "test")


@dataclass
class Language:
    """What a plan knows about its texts.

    Attributes:
        splits: samples as :class:`~limbeck.models.chat_input.Encoded`, row for row those of the plan's data.
        text: whose text is learnt, as the user wrote it. decoding: how a student writes.
        prompts: whether the data have prompts that can be answered.
        vocabulary: rows of logits that teacher and student share, where one has padding behind them.
        pad: token that fills up rows.
        heads: whether losses run the heads, a chunk of rows at a time.
        alignment: how a teacher of another tokenizer reads them.
        written: training samples with the teacher's answers, once they are there.
        answers: the teacher's greedy answers to held-out prompts, once it was measured.
        unread: ``texts`` and ``prompts`` that a teacher behind a server read in other tokens, and how many it was asked
            about.
    """

    splits: Splits
    text: str
    decoding: Decoding
    prompts: bool
    vocabulary: int | None
    pad: int
    heads: bool = False
    alignment: Alignment | None = None
    written: Split | None = None
    answers: list[str] = field(default_factory=list)
    unread: dict[str, tuple[int, int]] = field(default_factory=dict)

    def writer(self) -> Writer:
        """A new writer, with nothing in its buffer."""
        return parse_text(self.text, self.decoding)

    def forward(self, *, whole: bool = False) -> Forward:
        """How to run a network on a batch of sequences.

        Args:
            whole: multiply the logits out.
        """
        run: Any = answer_head if self.heads and not whole else answer_logits
        return run if self.vocabulary is None else first_logits(run, self.vocabulary)

    def teacher_forward(self, signals: SignalChoice) -> Forward:
        """How to run the teacher for one kind of signals: hidden states are kept alone, caches take whole logits."""
        if self.alignment is not None:
            return self.alignment.forward()
        return answer_hidden if signals.kind == "hidden" else self.forward(whole=signals.cached)

    def loader(
        self, part: str, batch_size: int, *, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
        prompts: bool | None = None, ready: bool = False, teacher: bool = False,
    ) -> TensorLoader:  # fmt: skip
        """Batches of samples of like length, with the columns of :class:`~limbeck.language.Sequences`.

        Args:
            part: ``train``, ``validation`` or ``test``; ``data`` for the training samples with the data's own answers,
                where the teacher has written others.
            prompts: begin answers behind the prompt, as writers and teachers with prompts of their own need it; else
                behind the first token, which pads less.
            ready: as networks read them, with ``target`` and ``mask``; with ``teacher`` in the teacher's tokens.
        """
        split = self.samples(part)
        samples: Any = split.input
        begin = self.begins_behind_prompts if prompts is None else prompts
        prepare = _ready
        if teacher and self.alignment is not None:
            prepare = self.alignment.retokenizer.teacher_batch
        given: dict[str, Any] = {"input": samples, "id": split.id}
        if self.routes:
            given[ROUTE] = [one.teacher for one in samples]
        return TensorLoader(
            given, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last,
            collate=functools.partial(columns, pad=self.pad, prompts=begin), lengths=[len(one) for one in samples],
            transform=prepare if ready else None,
        )  # fmt: skip

    def columns(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Rows as the loader of training gives them."""
        return columns(samples, pad=self.pad, prompts=self.begins_behind_prompts)

    @property
    def begins_behind_prompts(self) -> bool:
        """Whether batches know where the prompt ends."""
        return writes(self.writer()) or (self.alignment is not None and self.alignment.own_prompts)

    def samples(self, part: str) -> Split:
        """The samples of a part; see :meth:`loader`."""
        if part == "train" and self.written is not None:
            return self.written
        found: Split = getattr(self.splits, "train" if part == "data" else part)
        return found

    def learnt(self, part: str) -> int:
        """Tokens that are learnt of a part."""
        samples: Any = self.samples(part).input
        return sum(int(one.learnt.sum()) for one in samples)

    def positions(self) -> int:
        """About how many positions a cache of the training texts holds: exact with one tokenizer."""
        ratio = 1.0 if self.alignment is None else self.alignment.ratio
        return round(self.learnt("train") * ratio)

    @property
    def routes(self) -> set[str]:
        """Names of teachers that texts go to; empty where texts are not routed."""
        return {one.teacher for one in self.splits.train.input} - {""}  # type: ignore[union-attr]

    def fingerprint(self) -> dict[str, str]:
        """Hash of all training tokens and of what is learnt of them: what a cache of their signals depends on."""
        samples: Any = self.samples("train").input
        ids, learnt = torch.cat([one.ids for one in samples]), torch.cat([one.learnt for one in samples])
        lengths = torch.tensor([len(one) for one in samples])
        found = {"text": fingerprint_tensors({"ids": ids, "learnt": learnt, "lengths": lengths})}
        return found if self.alignment is None else found | self.alignment.fingerprint(samples)


def columns(samples: Sequence[Encoded], *, pad: int, prompts: bool) -> dict[str, Tensor]:
    """Rows for :meth:`limbeck.language.Sequences.of`."""
    cuts = [max(1, one.start) if prompts else 1 for one in samples]
    ids = [one.ids.tolist() for one in samples]
    made = Sequences.pad(
        [row[:cut] for row, cut in zip(ids, cuts)], [row[cut:] for row, cut in zip(ids, cuts)], pad=pad
    )
    learnt = torch.zeros_like(made.answer_mask)
    for place, (one, cut) in enumerate(zip(samples, cuts)):
        learnt[place, : len(one) - cut] = one.learnt[cut:]
    found = replace(made, learnt=learnt).columns()
    own = [one.teacher_prompt.tolist() for one in samples if one.teacher_prompt is not None]
    if prompts and own and len(own) == len(samples):
        theirs = Sequences.pad(own, pad=pad)
        found |= {"teacher_prompt": theirs.prompt, "teacher_prompt_mask": theirs.prompt_mask}
    return found


def read_language(
    data: DataSet, reader: Network, text: str, decoding: Mapping[str, float], vocabulary: int | None, *,
    served: bool = False,
) -> tuple[Language, DataSet, list[str]]:  # fmt: skip
    """Tokens of all samples, the data without those that teach nothing, and notes.

    Args:
        reader: the network whose tokenizer and chat template read the data.
        text, decoding, vocabulary: see :class:`Language`.
        served: whether a server is asked about the training texts, some only by their text: what is cut is then cut
            where that text has the same tokens again.

    Raises:
        UserError: the data are no texts, nothing is left to learn, or a setting of the text is wrong.
    """
    prepare = reader.prepare
    if not isinstance(prepare, ChatInput):
        raise UserError("student", reference_of(reader), "a language model of transformers, with its tokenizer")
    tokenizer = reader.tokenizer
    how = read_decoding(decoding, tokenizer)
    writer = parse_text(text, how)
    prompts = prompts_of(data.splits.train)
    answered = writes(writer) or isinstance(writer, TeacherText)
    if answered and not prompts:
        hint = "prompts are answered: give columns messages, or prompt and completion"
        raise UserError("text", text, "data, for plain texts", hint)
    raw, encoded, notes = {}, {}, list[str]()
    for part in _PARTS:
        split: Split = getattr(data.splits, part)
        with quiet():
            rows = [prepare.encode(sample) for sample in split.input]
            if served and part == "train":
                rows = readable(rows, tokenizer)
        counts = Counts.of(rows)
        # Whoever writes needs prompts alone.
        good = [
            place
            for place, one in enumerate(rows)
            if len(one) > 1 and (bool(one.learnt.any()) or (answered and _opens(one)))
        ]
        notes += [f"{part}: {line}" for line in counts.describe(prepare.max_length)]
        if len(good) < len(rows):
            notes.append(f"{part}: {len(rows) - len(good)} texts without a token to learn are left out")
        if not good:
            raise UserError("data", f"{len(rows)} {part} texts", "texts with an answer to learn", "; ".join(notes[-2:]))
        raw[part] = split.subset(good)
        encoded[part] = Split([rows[place] for place in good], None, raw[part].id)
    if answered:
        _check_room(reader, encoded["train"], how)
    language = Language(Splits(**encoded), text, how, prompts, vocabulary, how.pad)
    return language, replace(data, splits=Splits(**raw)), notes


def _check_room(reader: Network, split: Split, how: Decoding) -> None:
    samples: Any = split.input
    positions = int(getattr(reader.module.config, "max_position_embeddings", 0) or 0)  # type: ignore[union-attr, arg-type]
    longest = max(one.start for one in samples)
    if positions and longest + how.length > positions:
        given = f"prompts of up to {longest} tokens and answers of {how.length}"
        raise UserError("decoding length", given, f"{positions} together, the student's positions", "or --max-length")


def read_decoding(given: Mapping[str, float], tokenizer: Any) -> Decoding:
    """``temperature``, ``top_p`` and ``length``, with the tokenizer's own end and padding."""
    for key in given:
        if key not in _DECODING:
            raise UserError("decoding", key, _DECODING)
    values = {**_DECODING, **given}
    if not values["temperature"] > 0:
        raise UserError("decoding temperature", values["temperature"], "a positive number")
    if not 0 < values["top_p"] <= 1:
        raise UserError("decoding top_p", values["top_p"], "above 0, at most 1")
    if values["length"] < 1:
        raise UserError("decoding length", values["length"], "1 or more tokens")
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or 0)
    return Decoding(int(values["length"]), end, int(pad), values["temperature"], values["top_p"])


def heads_in_chunks(language: Language, networks: Sequence[Network]) -> str:
    """Whether the networks' heads are left to the losses; sets ``language.heads`` and says what is kept in memory."""
    samples: Any = language.splits.train.input[:2]  # type: ignore[index]
    batch = _ready({"input": columns(samples, pad=language.pad, prompts=False), "id": language.splits.train.id[:2]})
    try:
        for network in networks:
            device = next(network.module.parameters()).device
            with evaluating(network.module):
                check_head(network.module, move(batch, device))
    except UserError as error:
        language.heads = False
        return f"whole logits of student and teacher are kept ({error})"
    language.heads = True
    return "heads run a chunk of rows at a time: no whole logits are kept where the objective allows it"


def language_distiller(
    plan: Plan, objective: Objective, teacher: Source | None, *, text: str | None = None
) -> SequenceDistiller:
    """The distiller of a plan for language models, on the batches of :meth:`Language.loader`."""
    language = plan.language
    if language is None:
        raise LimbeckError(f"{plan.task}: a plan without texts")
    return SequenceDistiller(
        plan.student.module, objective, teacher,
        writer=parse_text(language.text if text is None else text, language.decoding), seed=plan.settings.seed,
        optimizer=plan.optimizer, forward=language.forward(),
        retokenizer=language.alignment.retokenizer if teacher is not None and language.alignment is not None else None,
    )  # fmt: skip


def reference_of(network: Network) -> str:
    """How errors name a network."""
    return network.reference or type(network.module).__name__


def _opens(one: Encoded) -> bool:
    # A prompt that was cut has lost the words that ask for an answer.
    return one.start == len(one) and not one.lost


def _ready(batch: dict[str, Any]) -> dict[str, Any]:
    # Texts have one view, and a cache one row for it.
    others = {name: value for name, value in batch.items() if name != "view"}
    return {**others, **Sequences.of(batch["input"]).batch()}
