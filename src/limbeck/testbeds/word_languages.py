"""Word languages: which of a few languages is a word from, when only examples say what the languages are called?

Words of Debian's lists of eight languages. An episode takes two languages, calls each by a letter drawn at random,
shows words with their letters and asks for the letter of a new word. No letter means anything beyond its episode, so a
model that answers has learnt it from the context. The teacher, a byte-level Llama, is trained on episodes of six
languages; tasks with one of the other two are held out, and the words of the test are in no training episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_tensors
from limbeck.data.episodes import Episodes, EpisodeSampler, Tasks, split_tasks
from limbeck.data.split import Split, Splits
from limbeck.data.store import cache_folder, content_hash
from limbeck.data.views import view_seeds
from limbeck.data.word_lists import LANGUAGES, VERSION, hashes, own_words
from limbeck.language import InContext, full_context_logits, left_aligned, pad_rows
from limbeck.models.llama import LlamaSizes, llama
from limbeck.nn.transfer import keep_layers
from limbeck.sources import Live, Source
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.recipe import kept_numbers, kept_signals, kept_tensors, kept_weights, seeded
from limbeck.testbeds.word_reading import FIRST_NAME, NEWLINE, PAD, SPACE, Lines, Reading, read

HELD_OUT = ("italian", "swedish")


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        model: size of the frozen model. reading, again: its two trainings, on different episodes.
        reader: size of a small model of another width, with the first of these trainings.
        bounds: of the gate.
        words: of every language; the last fifth of them is for validation and test.
        shots: demonstrations of an episode.
        names: letters to draw from.
        sizes: languages of a training episode; tests ask for two.
        texts, train, validation, test: texts without letters, and episodes.
        kept: layers of the model that the reader has.
        queries: of the training episodes, so many in a row about the same demonstrations.
    """

    about: str
    model: LlamaSizes
    reader: LlamaSizes
    reading: Reading
    again: Reading
    bounds: Mapping[str, tuple[float, float]]
    words: int = 15000
    shots: int = 16
    names: int = 4
    sizes: tuple[int, ...] = (2,)
    texts: int = 1024
    train: int = 4096
    validation: int = 256
    test: int = 768
    queries: int = 4
    kept: int = 3


class WordLanguages(Testbed):
    """See the module. ``input`` has the columns of :class:`~limbeck.language.InContext` and ``candidates``, the task's
    letters; the target is the name's number. Bytes are tokens; 0 pads."""

    name = "word_languages"
    regimes = {
        "plain": Regime(
            "a Llama of 4 layers, a reader of 3, and 16 demonstrations",
            model=LlamaSizes(128, 4, 4), reader=LlamaSizes(96, 2, 3), reading=Reading(steps=800, learning_rate=3e-3),
            again=Reading(steps=2400, seed=1),
            bounds={
                "seen": (0.7, 0.98), "held_out": (0.65, 0.97), "without_examples": (0.4, 0.6), "lead": (0.15, 0.5),
            },
        ),
    }  # fmt: skip

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan: Regime = chosen if size == "full" else self.smoke(chosen)

    @staticmethod
    def smoke(regime: Regime) -> Regime:
        """The same regime in seconds: a model that hardly learns."""
        return replace(
            regime, model=LlamaSizes(16, 2, 2), reader=LlamaSizes(8, 2, 2), kept=1,
            reading=Reading(steps=4, batch_size=4), again=Reading(steps=2, batch_size=4), words=200,
            shots=4, texts=32, train=64, validation=8, test=16, bounds={"seen": (0.0, 1.0)},
        )  # fmt: skip

    @property
    def num_classes(self) -> int:
        """Letters that a language can be called by."""
        return self.plan.names

    @property
    def vocabulary(self) -> int:
        """Bytes."""
        return 256

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the lists' packages."""
        return hashes()

    @cached_property
    def tasks(self) -> Mapping[str, tuple[tuple[int, ...], ...]]:
        """``train``: seen languages; ``seen`` and ``held_out``: pairs to be judged by."""
        kept = [number for number, name in enumerate(LANGUAGES) if name in HELD_OUT]
        pairs: Tasks = split_tasks(len(LANGUAGES), kept)
        return {
            "train": split_tasks(len(LANGUAGES), kept, sizes=self.plan.sizes).seen,
            "seen": pairs.seen,
            "held_out": pairs.held_out,
        }

    def splits(self, seed: int = 0) -> Splits:
        """Training and validation on seen tasks, the test on held-out ones, the same for every seed; see
        :meth:`seen_test` too."""
        plan = self.plan
        return Splits(
            self.episodes("train", plan.train, 5, queries=plan.queries),
            self.episodes("seen", plan.validation, 1, fresh=True, first=1 << 20),
            self.episodes("held_out", plan.test, 2, fresh=True, first=1 << 21),
        )

    def seen_test(self) -> Split:
        """Pairs of languages that training knows, with words that it does not."""
        return self.episodes("seen", self.plan.test, 3, fresh=True, first=1 << 22)

    def episodes(
        self, tasks: str, count: int, seed: int, *, fresh: bool = False, first: int = 0, queries: int = 1
    ) -> Split:
        """Episodes of the tasks ``train``, ``seen`` or ``held_out``.

        Args:
            fresh: of the words that are kept for tests. first: id of the first one.
            queries: so many in a row about the same demonstrations.
        """
        ids, shots = torch.arange(count) + first, self.plan.shots
        views = view_seeds(seed, 0, ids[::queries])
        drawn, rows = self._drawn(self.tasks[tasks], views, fresh, shots + queries)
        names = drawn.names + FIRST_NAME
        context, known = (
            part.repeat_interleave(queries, 0) for part in self._joined(rows[:, :shots], names[:, :shots])
        )
        # The line ends behind the answer.
        text = self._pieces(rows[:, shots:], names[:, shots:]).flatten(0, 1)
        text = torch.where(text == NEWLINE, PAD, text)
        mask = text != PAD
        answer = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
        given = InContext(context, known, text, mask, answer)
        candidates = torch.where(drawn.candidates >= 0, drawn.candidates + FIRST_NAME, -1)
        columns = {**given.columns(), "candidates": candidates.repeat_interleave(queries, 0)}
        return Split(columns, drawn.names[:, shots:].flatten(), ids)

    def texts(self) -> Split:
        """Words of seen tasks' languages without names: four fifths of a text are context, the rest follows.

        What counts as the answer is all of the rest but its first byte, which nothing behind the context predicts.
        """
        plan = self.plan
        ids = torch.arange(plan.texts) + (1 << 23)
        count = plan.shots + plan.shots // 4
        _, rows = self._drawn(self.tasks["train"], view_seeds(4, 0, ids), fresh=False, items=count)
        context, text = self._joined(rows[:, : plan.shots]), self._joined(rows[:, plan.shots :])
        # Texts stand at the left.
        moved, mask = (part.flip(1) for part in left_aligned(*(part.flip(1) for part in text)))
        return Split(InContext(*context, moved, mask, mask & (torch.arange(mask.shape[1]) > 0)).columns(), None, ids)

    def signals(self, split: Split, swapped: bool = False) -> Source:
        """What the teacher says at the tokens of a split's texts, asked for once and kept.

        Args:
            swapped: behind the context of another group of the split's samples.
        """
        given = InContext.of(split.input)  # type: ignore[arg-type]
        if swapped:
            moved = {name: getattr(given, name).roll(self.plan.queries, 0) for name in ("context", "context_mask")}
            given = replace(given, **moved)
        batches = Split(given.columns(), None, split.id).batches(64)
        content = {"data": fingerprint_tensors(given.columns())}
        source = Live(self.teacher(), forward=full_context_logits)
        return kept_signals(f"{self.name}-{self.size}", source, batches, ("logits", "counted"), content)

    def network(self, sizes: LlamaSizes, seed: int) -> nn.Module:
        """An untrained Llama model over bytes."""
        return seeded(lambda: llama(sizes, self.vocabulary, 512, pad=PAD), seed)

    def teacher(self) -> nn.Module:
        """The language model, which stays frozen: it reads demonstrations, or what stands for them."""
        plan = self.plan

        def first() -> nn.Module:
            empty = partial(self.network, plan.model, plan.reading.seed)
            made = kept_weights(
                self.name, self._content, empty, lambda model: self.read(model, plan.model, plan.reading)
            )
            return made.requires_grad_(True)

        return kept_weights(self.name, self._twice, first, lambda model: self.read(model, plan.model, plan.again))

    def student(self, seed: int = 0) -> nn.Module:
        """The model's first layers, to read contexts in its place; trainable, the same for every seed."""
        return keep_layers(self.teacher(), range(self.plan.kept)).requires_grad_(True)

    def reader(self) -> nn.Module:
        """A small language model of its own, narrower than the large one, to read contexts; trainable."""
        plan = self.plan
        made = kept_weights(
            f"{self.name}-reader",
            self._content,
            build=lambda: self.network(plan.reader, plan.reading.seed + 1),
            make=lambda model: self.read(model, plan.reader, plan.reading),
        )
        return made.requires_grad_(True)

    @property
    def tokens(self) -> list[int]:
        """Bytes that occur in many texts: letters of both kinds, spaces and line ends."""
        return [NEWLINE, SPACE, *range(FIRST_NAME, FIRST_NAME + self.plan.names), *range(ord("a"), ord("z") + 1)]

    def read(
        self, model: nn.Module, sizes: LlamaSizes, recipe: Reading, log: Callable[[int, float], None] | None = None
    ) -> nn.Module:
        """Train a language model in place; a training that was killed goes on."""
        content = {**self._content, "sizes": asdict(sizes), "recipe": asdict(recipe)}
        kept = cache_folder("partial") / f"{self.name}-{content_hash(content)[:16]}.pt"
        return read(model, recipe, lambda step: self.lines(recipe, step), len(LANGUAGES), kept, log)

    def lines(self, recipe: Reading, step: int) -> Lines:
        """New episodes of training tasks, the first of them without names."""
        ids = torch.arange(recipe.batch_size) + step * recipe.batch_size
        drawn, rows = self._drawn(self.tasks["train"], view_seeds(recipe.seed, 0, ids), fresh=False)
        plain = round(recipe.unlabelled * recipe.batch_size)
        names = drawn.names + FIRST_NAME
        names[:plain] = -1
        return Lines(*self._joined(rows, names), drawn.classes[plain:])

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``accuracy`` among the task's names, and ``nll`` of the right one among all bytes, with all examples."""
        right = nll = 0.0
        for batch in split.batches(64):
            given = InContext.of(batch["input"]).trimmed()
            said = full_context_logits(model, given.batch())["logits"].log_softmax(-1)
            scores = self.name_scores(said, given, batch["input"]["candidates"])
            name = batch["target"] + FIRST_NAME
            chosen = batch["input"]["candidates"].gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
            right += float((chosen == name).sum())
            nll -= float(answer_rows(said, given).gather(1, name[:, None]).sum())
        return {"accuracy": right / len(split), "nll": nll / len(split)}

    @staticmethod
    def name_scores(said: Tensor, given: InContext, candidates: Tensor) -> Tensor:
        """Log-probability ``[B, K]`` of every candidate name, -inf where there is none."""
        scores = answer_rows(said, given).gather(1, candidates.clamp_min(0))
        return torch.where(candidates >= 0, scores, -torch.inf)

    def gate(self) -> Gate:
        """The model learns from examples, for languages it knows and for others, and not perfectly."""
        figures = kept_numbers(
            f"gate-{self.name}-{self.regime}-{self.size}", {**self._twice, "test": self.plan.test}, self._gate_figures
        )
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        teacher, seen, held_out = self.teacher(), self.seen_test(), self.splits().test
        found = {
            name: self.evaluate(teacher, part)["accuracy"] for name, part in (("seen", seen), ("held_out", held_out))
        }
        bare = InContext.of(held_out.input).without_context().columns()  # type: ignore[arg-type]
        alone = Split({**held_out.input, **bare}, held_out.target, held_out.id)  # type: ignore[dict-item]
        found["without_examples"] = self.evaluate(teacher, alone)["accuracy"]
        return {**found, "lead": found["held_out"] - found["without_examples"]}

    @property
    def _content(self) -> dict[str, Any]:
        plan = self.plan
        shape = [plan.words, plan.shots, plan.names, list(plan.sizes), asdict(plan.model), asdict(plan.reader)]
        return {"lists": hashes(), "version": VERSION, "shape": shape, "reading": asdict(plan.reading)}

    @property
    def _twice(self) -> dict[str, Any]:
        return {**self._content, "again": asdict(self.plan.again)}

    @cached_property
    def _words(self) -> dict[str, Tensor]:
        """``bytes`` ``[languages * words, longest]`` and ``length``, language by language."""
        content = {"lists": hashes(), "version": VERSION, "words": self.plan.words}
        return kept_tensors(f"{self.name}-words", content, self._encoded)

    def _encoded(self) -> dict[str, Tensor]:
        rows = [word.encode() for words in own_words(self.plan.words).values() for word in words]
        table, mask = pad_rows([list(row) for row in rows], PAD, left=False)
        return {"bytes": table, "length": mask.sum(1)}

    def _drawn(
        self, tasks: tuple[tuple[int, ...], ...], views: Tensor, fresh: bool, items: int | None = None
    ) -> tuple[Episodes, Tensor]:
        """Episodes and the rows of their words in the table, ``[B, items]``."""
        held = self.plan.words // 5
        count = held if fresh else self.plan.words - held
        sampler = EpisodeSampler(tasks, (count,) * len(LANGUAGES), items or self.plan.shots + 1, self.plan.names)
        drawn = sampler.draw(views)
        return drawn, drawn.classes * self.plan.words + drawn.places + (self.plan.words - held) * fresh

    def _joined(self, rows: Tensor, names: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Words ``[B, n]`` with their names (none where that is -1), a line each, as left-padded tokens and mask."""
        names = torch.full_like(rows, -1) if names is None else names
        tokens = self._pieces(rows, names).flatten(1)
        return left_aligned(tokens, tokens != PAD)

    def _pieces(self, rows: Tensor, names: Tensor) -> Tensor:
        """``[B, n, longest + 3]``: a word's bytes, a space, its name, a line end; without a name only the line end."""
        table = nn.functional.pad(self._words["bytes"], (0, 3), value=PAD)[rows]
        after = torch.arange(table.shape[-1]) - self._words["length"][rows][..., None]
        named = (names >= 0)[..., None]
        behind = torch.where(after == 0, SPACE, torch.where(after == 1, names[..., None], NEWLINE))
        last = torch.where(named, 2, 0)
        behind = torch.where(named, behind, NEWLINE)
        return torch.where(after < 0, table, torch.where(after <= last, behind, PAD))


def answer_rows(said: Tensor, given: InContext) -> Tensor:
    """Of ``[B, X, V]`` the row ``[B, V]`` that speaks of the answer's first token."""
    place = given.answer.int().argmax(1) - 1
    return said[torch.arange(len(said)), place]
