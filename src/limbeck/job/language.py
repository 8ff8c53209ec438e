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
from limbeck.job.teachers import ROUTE, SignalChoice
from limbeck.language import (
    Decoding,
    SequenceDistiller,
    Sequences,
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
        answers: the teacher's greedy answers to held-out prompts, once it was measured.
    """

    splits: Splits
    text: str
    decoding: Decoding
    prompts: bool
    vocabulary: int | None
    pad: int
    heads: bool = False
    answers: list[str] = field(default_factory=list)

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
        return answer_hidden if signals.kind == "hidden" else self.forward(whole=signals.cached)

    def loader(
        self, part: str, batch_size: int, *, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
        prompts: bool | None = None, ready: bool = False,
    ) -> TensorLoader:  # fmt: skip
        """Batches of samples of like length, with the columns of :class:`~limbeck.language.Sequences`.

        Args:
            prompts: begin answers behind the prompt, as writers need it; else behind the first token, which pads less.
            ready: as networks read them, with ``target`` and ``mask``.
        """
        split: Split = getattr(self.splits, part)
        samples: Any = split.input
        begin = writes(self.writer()) if prompts is None else prompts
        given: dict[str, Any] = {"input": samples, "id": split.id}
        if self.routes:
            given[ROUTE] = [one.teacher for one in samples]
        return TensorLoader(
            given, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last,
            collate=functools.partial(columns, pad=self.pad, prompts=begin), lengths=[len(one) for one in samples],
            transform=_ready if ready else None,
        )  # fmt: skip

    def learnt(self, part: str) -> int:
        """Tokens that are learnt of a part, which is how many positions a cache of it holds."""
        return sum(int(one.learnt.sum()) for one in getattr(self.splits, part).input)

    @property
    def routes(self) -> set[str]:
        """Names of teachers that texts go to; empty where texts are not routed."""
        return {one.teacher for one in self.splits.train.input} - {""}  # type: ignore[union-attr]

    def fingerprint(self) -> dict[str, str]:
        """Hash of all training tokens and of what is learnt of them: what a cache of their signals depends on."""
        samples: Any = self.splits.train.input
        ids, learnt = torch.cat([one.ids for one in samples]), torch.cat([one.learnt for one in samples])
        lengths = torch.tensor([len(one) for one in samples])
        return {"text": fingerprint_tensors({"ids": ids, "learnt": learnt, "lengths": lengths})}


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
    return replace(made, learnt=learnt).columns()


def read_language(
    data: DataSet, reader: Network, text: str, decoding: Mapping[str, float], vocabulary: int | None
) -> tuple[Language, DataSet, list[str]]:
    """Tokens of all samples, the data without those that teach nothing, and notes.

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
    if writes(writer) and not prompts:
        hint = "a student answers prompts: give columns messages, or prompt and completion"
        raise UserError("text", text, "data, for plain texts", hint)
    raw, encoded, notes = {}, {}, list[str]()
    for part in _PARTS:
        split: Split = getattr(data.splits, part)
        with quiet():
            rows = [prepare.encode(sample) for sample in split.input]
        counts = Counts.of(rows)
        # A student that writes learns from prompts too.
        good = [
            place for place, one in enumerate(rows) if len(one) > 1 and (bool(one.learnt.any()) or _opens(one, writer))
        ]
        notes += [f"{part}: {line}" for line in counts.describe(prepare.max_length)]
        if len(good) < len(rows):
            notes.append(f"{part}: {len(rows) - len(good)} texts without a token to learn are left out")
        if not good:
            raise UserError("data", f"{len(rows)} {part} texts", "texts with an answer to learn", "; ".join(notes[-2:]))
        raw[part] = split.subset(good)
        encoded[part] = Split([rows[place] for place in good], None, raw[part].id)
    if writes(writer):
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
    )  # fmt: skip


def reference_of(network: Network) -> str:
    """How errors name a network."""
    return network.reference or type(network.module).__name__


def _opens(one: Encoded, writer: Writer) -> bool:
    # A prompt that was cut has lost the words that ask for an answer.
    return writes(writer) and one.start == len(one) and not one.lost


def _ready(batch: dict[str, Any]) -> dict[str, Any]:
    # Texts have one view, and a cache one row for it.
    others = {name: value for name, value in batch.items() if name != "view"}
    return {**others, **Sequences.of(batch["input"]).batch()}
