"""LLMLingua-2: a small encoder learns from a compressor which words a prompt can do without (Findings of ACL 2024).

    teacher      x -> c(x)                       a shorter text: a chat model told to delete words only, or another
    annotate     y_i = 1 if a word of c(x) was found at word i of x               (sliding window, ``align``)
    filter       VR = share of c(x)'s words that x does not have,  AG = HR - MR   drop the worst tenth of each
    student      p = softmax(z(x)) per sub-word,  L = mean over sub-words of -log p_{y of their word}
    compress     p of a word = mean over its sub-words;  keep the words of highest p at the wanted rate

HR is the number of c(x)'s words that stand in x, MR the number of labels, both per word of x. The student sees both
sides of a word. The result holds words of x alone, in their order.

The parts live in shared rooms: :mod:`limbeck.language.compressors` (teachers), :mod:`limbeck.data.alignment`,
:mod:`limbeck.data.word_labels`, :mod:`limbeck.models.token_classifier`, :mod:`limbeck.language.keeping`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbeck.data.alignment import Alignment, align, trusted
from limbeck.data.loaders import TensorLoader
from limbeck.data.word_labels import trim, word_table
from limbeck.data.word_spans import Word, join_kept, split_spans
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import fit
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.language.compressors import Compressor, compress_all
from limbeck.language.keeping import Keeper, best_contexts, budget, shares
from limbeck.models.token_classifier import TokenClassifier
from limbeck.objectives import CrossEntropy

_RELEASED = OptimizerSettings("adam", 1e-5, weight_decay=0.0, schedule="constant")


@dataclass(frozen=True)
class Recipe:
    """How the student is trained. The defaults are the released ones, for encoders of BERT's size."""

    epochs: int = 10
    batch_size: int = 10
    optimizer: OptimizerSettings = _RELEASED
    trainable: Sequence[str] = ("*",)


@dataclass(frozen=True)
class Annotation:
    """Texts as words, what was found of their compressed forms, and the numbers of those that the filter trusts."""

    words: list[list[str]]
    alignments: list[Alignment]
    trusted: list[int]


class LLMLingua2:
    """Compresses texts to any rate: ``fit(texts)`` with a teacher, then ``transform(texts)`` or :meth:`compress`.

    Args:
        student: a token classifier; a released checkpoint needs no ``fit``.
        rate: share of the words to be kept.
        teacher: text -> compressed text.
        window: of the alignment, 400 in the released recipe.
        variation, gap: percentiles of the filter; None switches one off.
        recipe: of the training; the last epoch counts.
        forced: words that always stay; with ``"\\n"`` among them line ends are words. digits: so do words with a digit.
        drop_repeats: equal forced words without another kept word between them stay once.
        merge: of a word's sub-words, ``mean`` or ``first``.
        rule: ``exact`` or ``percentile``; see :class:`~limbeck.language.keeping.Keeper`.
        cost: what a word costs of the budget, such as its tokens in the model that will read it; 1 by default.
        seed: of order and dropout. options: anything else that :func:`~limbeck.engine.fit` takes.
    """

    def __init__(
        self,
        student: TokenClassifier,
        *,
        rate: float = 0.5,
        teacher: Compressor | None = None,
        window: int = 400,
        variation: float | None = 90.0,
        gap: float | None = 90.0,
        recipe: Recipe | None = None,
        forced: Collection[str] = (),
        digits: bool = False,
        drop_repeats: bool = False,
        merge: str = "mean",
        rule: str = "exact",
        cost: Callable[[str], int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.student, self.teacher, self.recipe = student, teacher, recipe or Recipe()
        self.window, self.variation, self.gap = window, variation, gap
        self.keeper, self.merge, self.cost = Keeper(rate, forced, digits, drop_repeats, rule), merge, cost
        self.seed, self.options = seed, options

    # Annotation and training.

    def annotate(self, texts: Sequence[str]) -> Annotation:
        """Ask the teacher and find its words in the texts. Signs of punctuation are no reason to keep anything."""
        if self.teacher is None:
            raise UserError("teacher", None, "a function from a text to a compressed text")
        words = [[word.text for word in self.split(text)] for text in texts]
        shorter = [
            [word.text for word in split_spans(text) if word.spoken] for text in compress_all(self.teacher, texts)
        ]
        found = [align(ours, theirs, self.window) for ours, theirs in zip(words, shorter)]
        return Annotation(words, found, trusted(found, variation=self.variation, gap=self.gap))

    def fit(self, texts: Sequence[str]) -> LLMLingua2:
        """Annotate, filter, train. ``annotation_`` and ``history_`` hold what came of it."""
        self.annotation_ = given = self.annotate(texts)
        if not given.trusted:
            raise UserError("texts", f"{len(texts)}, none with a usable compressed form", "at least one")
        table = word_table(
            self.student.tokenizer,
            [given.words[row] for row in given.trusted],
            [given.alignments[row].labels for row in given.trusted],
            self.student.max_length,
        )
        recipe = self.recipe
        distiller = Distiller(
            self.student, CrossEntropy(), optimizer=recipe.optimizer, trainable=tuple(recipe.trainable)
        )
        loader = TensorLoader(table.samples(), recipe.batch_size, seed=self.seed, transform=trim, lengths=table.lengths)
        self.history_ = fit(distiller, loader, epochs=recipe.epochs, seed=self.seed, **self.options)
        distiller.finish()
        return self

    # Compression.

    def split(self, text: str) -> list[Word]:
        """A text's words."""
        return split_spans(text, newlines="\n" in self.keeper.forced)

    def word_scores(self, texts: Sequence[str]) -> list[Tensor]:
        """The probability to keep of every word of every text."""
        return self.student.word_scores([[w.text for w in self.split(text)] for text in texts], merge=self.merge)

    def transform(self, texts: Sequence[str]) -> list[str]:
        """The compressed texts."""
        return [self._kept(text, scores) for text, scores in zip(texts, self.word_scores(texts))]

    def compress(self, text: str) -> str:
        """One compressed text."""
        return self.transform([text])[0]

    def compress_contexts(
        self, contexts: Sequence[str], *, context_rate: float | None = None, forced: Collection[int] = ()
    ) -> list[str]:
        """Several documents under one budget: whole documents go first, then words of those that are left.

        Args:
            context_rate: share of all words that the documents that stay may have; (1 + rate) / 2 by default. They are
                those with the highest mean probability.
            forced: numbers of documents that stay in any case.

        The rest of the budget is dealt out in proportion to their lengths; documents that went are empty.
        """
        scores, costs = self.word_scores(contexts), [self._costs(text) for text in contexts]
        rate = self.keeper.rate
        sizes, every = [sum(row) for row in costs], [cost for row in costs for cost in row]
        coarse = budget(min((1 + rate) / 2 if context_rate is None else context_rate, 1.0), every)
        stays = best_contexts([row.tolist() for row in scores], sizes, coarse, forced)
        limits = shares([size if kept else 0 for size, kept in zip(sizes, stays)], budget(rate, every))
        return [
            self._kept(text, row, limit) if kept else ""
            for text, row, limit, kept in zip(contexts, scores, limits, stays)
        ]

    def _costs(self, text: str) -> list[int]:
        return [1 if self.cost is None else self.cost(word.text) for word in self.split(text)]

    def _kept(self, text: str, scores: Tensor, limit: int | None = None) -> str:
        words = self.split(text)
        return join_kept(words, self.keeper([w.text for w in words], scores.tolist(), self._costs(text), limit))
