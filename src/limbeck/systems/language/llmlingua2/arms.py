"""What the experiments of LLMLingua-2 share: how a student is trained, the rules it is compared with, and the judge."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from limbeck.data.alignment import Alignment, align
from limbeck.data.split import Split
from limbeck.data.word_spans import Word, split_spans
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.experiment import Experiment, Outcome
from limbeck.experiment.line_plots import lines
from limbeck.experiment.text_pictures import kept_words
from limbeck.language.compressors import Compressor, Saliency
from limbeck.language.keeping import Keeper
from limbeck.language.likelihood import self_information
from limbeck.measure import count_flops
from limbeck.measure.bm25 import BM25
from limbeck.testbeds import load
from limbeck.testbeds.prompt_texts import RATES, label_f1, spelled

from .method import LLMLingua2, Recipe

Scorer = Callable[[Sequence[str]], list[Tensor]]


@dataclass(frozen=True)
class Trained:
    """An arm with a student. ``teacher``: ``own``, or ``shuffled`` (see :meth:`CompressionExperiment.teacher`)."""

    causal: bool = False
    filtered: bool = True
    teacher: str = "own"


class CompressionExperiment(Experiment):
    """Compressed forms of test texts at three rates, judged by :class:`~limbeck.testbeds.prompt_texts.PromptTexts`.

    Further: ``human_f1``, the share of the words found in the author's summary among as many of highest score; for arms
    that run a network ``gflop``, its operations on a text of 64 tokens (a claim on it compares ``log10_gflop``); of
    trained arms ``label_share`` (of words labelled to keep) and ``trusted`` (of texts after the filter).
    """

    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    # A pilot on seed 100 with three epochs gained a third of a point in its last one.
    recipe = Recipe(
        epochs=4,
        batch_size=16,
        optimizer=OptimizerSettings("adam", 3e-4, weight_decay=0.0, schedule="linear", warmup=0.1),
        # MiniLM's word vectors are half of the work of a step and have nothing to learn from so few texts.
        trainable=("classifier.bert.encoder.*", "classifier.classifier.*"),
    )

    def prepare(self) -> dict[str, Any]:
        bed, test = self.bed, self.bed.part("test")
        found = [self.aligned(text, summary) for text, summary in zip(test.input, bed.summaries(test))]
        reference = {
            "authors' summaries": {
                "variation_rate": mean([one.variation_rate for one in found]),
                "alignment_gap": mean([one.alignment_gap for one in found]),
                "matching_rate": mean([one.matching_rate for one in found]),
                "compression_rate": mean([one.compression_rate for one in found]),
                "guess": bed.guesses(bed.summaries(self.guessed), bed.summaries(self.guessed)),
            },
            "whole texts": {"guess": bed.guesses(list(self.guessed.input), bed.summaries(self.guessed))},
        }
        return {"gate": bed.gate().as_dict(), "data": bed.data_hashes(), "reference": reference}

    def run(self, arm: str, seed: int) -> Outcome:
        setting = self.arms[arm].setting
        metrics: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        if isinstance(setting, Trained):
            method = self.train(setting, seed)
            metrics = self.about(method)
            curves = {"loss": [line["loss"] for line in method.history_.lines if "loss" in line]}
            score: Scorer = method.word_scores
        else:
            score = {**self.rules(seed)}[setting]
        test, other = self.bed.part("test"), self.bed.part("other")
        began = time.process_time()
        scores = score(list(test.input))
        seconds = time.process_time() - began
        others = score(list(other.input))
        metrics |= {**self.bed.judge(scores, others), **self.agreement(scores, others)}
        metrics["human_f1"] = label_f1(scores, [one.labels for one in self.human])
        metrics |= self.operations(arm)
        cost = self.speed(arm, seconds, sum(len(row) for row in scores)) if seed == 0 else {}
        return Outcome(metrics, curves, cost, pictures=self.pictures(arm, scores, metrics) if seed == 0 else {})

    # Students.

    def train(self, plan: Trained, seed: int) -> LLMLingua2:
        student = self.bed.student(seed, causal=plan.causal)
        texts = list(self.texts.input)
        percentile = 90.0 if plan.filtered else None
        method = LLMLingua2(
            student,
            teacher=self.teacher(plan, seed),
            variation=percentile,
            gap=percentile,
            recipe=self.recipe,
            seed=seed,
            accelerator="cpu",
            # A third less time; the scores' differences are far below those between seeds.
            precision="bf16-mixed",
        )
        return method.fit(texts)

    def agreement(self, scores: Sequence[Tensor], others: Sequence[Tensor]) -> dict[str, float]:
        """With a teacher that can be asked about test texts."""
        return {}

    @property
    @abstractmethod
    def texts(self) -> Split:
        """What students are trained on."""

    @abstractmethod
    def teacher(self, plan: Trained, seed: int) -> Compressor:
        """Who compresses them."""

    def about(self, method: LLMLingua2) -> dict[str, float]:
        """What annotation and filter made of the training texts."""
        given = method.annotation_
        chosen = [given.alignments[row] for row in given.trusted]
        return {
            "label_share": mean([one.matching_rate for one in chosen]),
            "trusted": len(given.trusted) / len(given.words),
        }

    # Rules without a student.

    def rules(self, seed: int) -> Mapping[str, Scorer]:
        """Word scores by name, of any texts (those of the networks: of the testbed's own)."""
        generator = torch.Generator().manual_seed(seed)
        return {
            "random": _spoken(lambda words: torch.rand(len(words), generator=generator)),
            "first": lambda texts: [-torch.arange(float(len(split_spans(text)))) for text in texts],
            "tfidf": _spoken(self.tfidf),
            "lookup": _spoken(self.lookup),
            "information": lambda texts: _muted(texts, self.bed.information(self.part_of(texts))),
            "teacher": lambda texts: self.bed.saliency(self.part_of(texts)),
        }

    def part_of(self, texts: Sequence[str]) -> Split:
        """The part of the testbed that these texts are."""
        parts: list[Split] = [self.bed.part(name) for name in ("test", "other")]
        return next(part for part in parts if list(part.input) == list(texts))

    def tfidf(self, words: Sequence[Word]) -> Tensor:
        """Inverse document frequency among the training texts, times the word's count in its own text."""
        lower = [word.text.lower() for word in words]
        return torch.tensor([self.counts.idf(word) * lower.count(word) for word in lower])

    def lookup(self, words: Sequence[Word]) -> Tensor:
        """How often the teacher kept the word in the training texts, whatever stood around it."""
        return torch.tensor([self.kept_share.get(word.text.lower(), self.kept_share[""]) for word in words])

    # Costs and pictures.

    def operations(self, arm: str) -> dict[str, float]:
        """``gflop`` of scoring one text of 64 tokens, and its logarithm; none where no network runs."""
        ids = torch.ones(1, 64, dtype=torch.int64)
        if isinstance(self.arms[arm].setting, Trained):
            model: Any = self.bed.student(0)
            count = count_flops(lambda: model(ids), model)
        elif arm == "information":
            model = self.bed.language_model[0]
            count = count_flops(lambda: model(ids), model)
        elif arm == "teacher":
            model = self.bed.encoder()
            # One pass for the whole text and one for each of its words, some 40 of 64 tokens.
            count = 41 * count_flops(lambda: model(ids), model)
        else:
            return {}
        return {"gflop": count / 1e9, "log10_gflop": math.log10(count / 1e9)}

    def speed(self, arm: str, seconds: float, words: int) -> dict[str, float]:
        """Words per second of one thread; of the networks whose scores are kept, on a few texts again."""
        few = list(self.bed.part("test").input[:4])
        again: list[Tensor] = []
        if arm == "teacher":
            measure = Saliency(self.bed.teacher()).scores
            began = time.process_time()
            again = [measure(one) for one in few]
        elif arm == "information":
            model, tokenizer = self.bed.language_model
            began = time.process_time()
            again = self_information(model, tokenizer, few)
        if again:
            seconds, words = time.process_time() - began, sum(len(row) for row in again)
        return {"words_per_second": words / max(seconds, 1e-6)}

    def pictures(self, arm: str, scores: Sequence[Tensor], metrics: Mapping[str, float]) -> dict[str, str]:
        """The curve of meaning over rate; of three arms a text with its kept words."""
        curve = {
            name: (list(RATES.values()), [metrics[f"{key}_{rate}"] for rate in RATES])
            for name, key in (("test", "meaning"), ("manual", "other_meaning"))
        }
        drawn = {"Retained meaning by rate": lines(curve, x_label="rate", y_label="cosine with the whole text")}
        if arm in ("student", "teacher", "information"):
            words = spelled(split_spans(self.bed.part("test").input[0]))
            drawn["Kept at a rate of a third"] = kept_words([(words, Keeper(RATES["33"])(words, scores[0].tolist()))])
        return drawn

    # What no arm changes.

    @cached_property
    def bed(self) -> Any:
        return load(self.testbed, "smoke" if self.size == "smoke" else "full")

    @cached_property
    def guessed(self) -> Split:
        found: Split = self.bed.part("test").subset(torch.arange(self.bed.plan.guessed))
        return found

    @cached_property
    def human(self) -> list[Alignment]:
        """Words of the test texts that their authors' summaries have."""
        test = self.bed.part("test")
        return [self.aligned(text, summary) for text, summary in zip(test.input, self.bed.summaries(test))]

    @staticmethod
    def aligned(text: str, shorter: str) -> Alignment:
        """As the method aligns."""
        return align(spelled(split_spans(text)), [word.text for word in split_spans(shorter) if word.spoken], 400)

    @cached_property
    def counts(self) -> BM25:
        return BM25().fit(list(self.bed.part("pool").input))

    @cached_property
    def kept_share(self) -> dict[str, float]:
        """Per word of the training texts the share of its labels that say keep, drawn a little towards that of words
        that occur once, which is what an unknown word has (``""``)."""
        found: dict[str, list[bool]] = {}
        known = self.teacher(Trained(), 0)
        for text in self.texts.input:
            words = spelled(split_spans(text))  # type: ignore[arg-type]
            for word, label in zip(words, self.aligned(text, known(text)).labels):  # type: ignore[arg-type]
                found.setdefault(word.lower(), []).append(label)
        once = [labels[0] for labels in found.values() if len(labels) == 1]
        rare = mean([float(label) for label in once])
        return {"": rare} | {word: (sum(labels) + rare) / (len(labels) + 1) for word, labels in found.items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _spoken(rule: Callable[[Sequence[Word]], Tensor]) -> Scorer:
    """A rule that keeps signs of punctuation last."""

    def score(texts: Sequence[str]) -> list[Tensor]:
        return _muted(texts, [rule(split_spans(text)) for text in texts])

    return score


def _muted(texts: Sequence[str], scores: Sequence[Tensor]) -> list[Tensor]:
    """Scores with those of punctuation below all others: no rival is to lose by commas."""
    spoken = [torch.tensor([word.spoken for word in split_spans(text)]) for text in texts]
    return [torch.where(mask, row.float(), torch.tensor(-1e3)) for mask, row in zip(spoken, scores)]
