"""MEND, meta demonstration distillation: a small network turns any demonstrations into a few vectors.

A language model that learns in context reads its demonstrations D anew for every query. MEND trains a small language
model g, once over many tasks, to read D and give L vectors in its place:

    teacher   z_T = LLM([D ; x])                            the frozen model with everything in front of it
    student   z_S = LLM([P(g([E_s(D) ; queries])) ; E(x)])   the same frozen model behind L vectors; P = tanh(W . + b)

    stage 1   L = KL(softmax(z_T / tau) || softmax(z_S / tau))     any text: D its first 80%, x the rest
    stage 2   L = CE(answer) + lambda KL                           tasks: D 16 demonstrations, x a query with its answer

The KL is the mean over all tokens of x, the cross-entropy that over the answer's tokens; tau = lambda = 1, L = 100. A
new task needs no training: its demonstrations are read once and their vectors kept, and every query costs L + |x|
positions in the place of |D| + |x|.

"MEND: Meta dEmonstratioN Distillation for Efficient and Effective In-Context Learning", ICLR 2024. README.md says where
this departs from the released code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from limbeck.engine import OptimizerSettings, Phase
from limbeck.language import (
    BehindPrefix,
    CandidateClassifier,
    ContextCompressor,
    InContext,
    Prefix,
    full_context_logits,
    pack_demonstrations,
    prefixed_logits,
)
from limbeck.objectives import CrossEntropy, Objective, SelectedKL
from limbeck.sources import Live, Source


def compressor(
    model: nn.Module, reader: nn.Module, length: int = 100, *, limit: int | None = 900, **options: Any
) -> ContextCompressor:
    """The distiller g with its queries and its projector, for the frozen ``model``.

    Args:
        reader: a small causal language model with the same tokenizer, best one that was trained on text already.
        length: L. limit: longest D in tokens.
        options: of :class:`~limbeck.language.ContextCompressor`.
    """
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    return ContextCompressor(reader, length, width, limit=limit, **options)


def pretraining(temperature: float = 1.0) -> Objective:
    """Stage 1: nothing but the teacher's distributions on the rest of a text."""
    return SelectedKL(temperature)


def finetuning(kl_weight: float = 1.0, temperature: float = 1.0) -> Objective:
    """Stage 2: cross-entropy on the answer and ``kl_weight`` (lambda) times the KL on query and answer."""
    return CrossEntropy() + kl_weight * SelectedKL(temperature)


def mend(
    model: nn.Module,
    texts: Iterable[Any] | None,
    episodes: Iterable[Any] | None,
    *,
    steps: tuple[int, int] = (30_000, 30_000),
    rates: tuple[float, float] = (5e-5, 1e-5),
    teachers: tuple[Source | None, Source | None] = (None, None),
    first: Objective | None = None,
    second: Objective | None = None,
) -> list[Phase]:
    """The two stages, for :func:`limbeck.engine.run_program` on a compressor.

    Args:
        model: the frozen language model, teacher and reader of the vectors at once.
        texts, episodes: loaders of batches as :func:`~limbeck.language.in_context_batch` makes them; None leaves the
            stage out.
        steps, rates: of the stages; as published.
        teachers: other sources of the teacher's ``logits`` and ``counted``, such as caches.
        first, second: other objectives than :func:`pretraining` and :func:`finetuning`.
    """
    behind = BehindPrefix(model)
    stages = (("pretraining", texts, first or pretraining()), ("finetuning", episodes, second or finetuning()))
    return [
        Phase(
            name, objective, loader, steps=steps[number],
            teacher=(teachers[number] or Live(model, forward=full_context_logits)) if objective.needs.teacher else None,
            optimizer=OptimizerSettings(lr=rates[number], warmup=0.05), forward=behind,
        )
        for number, (name, loader, objective) in enumerate(stages)
        if loader is not None
    ]  # fmt: skip


class DemonstrationClassifier:
    """A task from its demonstrations, in scikit-learn's manner: ``fit`` reads them once, ``predict`` reads queries.

    Args:
        model: the frozen language model. compressor: a trained one.
        candidates: the possible answers, as token ids. pad: filler token.

    Attributes:
        prefix_: the vectors, to be saved with :meth:`~limbeck.language.Prefix.save`.
        left_out_: demonstrations that did not fit into the compressor's limit.
    """

    def __init__(
        self, model: nn.Module, compressor: ContextCompressor, candidates: list[list[int]], *, pad: int
    ) -> None:
        self.model, self.compressor, self.candidates, self.pad = model, compressor, candidates, pad

    @torch.no_grad()
    def fit(self, demonstrations: list[list[int]]) -> DemonstrationClassifier:
        """Distil demonstrations, each a query with its answer as token ids; none give an empty prefix."""
        tokens, self.left_out_ = pack_demonstrations(demonstrations, self.compressor.limit)
        context = torch.tensor([tokens], dtype=torch.int64)
        self.prefix_: Prefix = self.compressor.eval()(context, torch.ones_like(context, dtype=torch.bool))
        return self

    def predict(self, queries: list[list[int]]) -> list[int]:
        """The number of the likeliest candidate for every query."""

        def read(given: InContext) -> torch.Tensor:
            return prefixed_logits(self.model, self.prefix_, given.text, given.text_mask)

        chooser = CandidateClassifier(read, self.candidates, pad=self.pad)
        return chooser.predict([[] for _ in queries], queries)
