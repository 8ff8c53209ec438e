"""The main experiment: an encoder-decoder learns to describe functions from a causal teacher.

Every arm of a seed begins with a student that the testbed fine-tuned on the true answers, which stands for the
published pre-training, and goes on for the same number of steps on the same prompts. Arms differ in the network, in
whose text the teacher is read on, and in alpha. The last step counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.experiment.text_pictures import kept_words
from limbeck.language import DataText, OnPolicy, StoredText, Writer
from limbeck.measure.text import exact_match, token_f1
from limbeck.models.encoder_decoder import core_parameters
from limbeck.objectives import CrossEntropy
from limbeck.testbeds.text_pairs import SplitSizes

from .claims import BOTH, GLOSSES, MAIN, SWEEP
from .method import TEMPERATURE, TOP_K, return_of_encoder


@dataclass(frozen=True)
class Way:
    """How an arm learns.

    Attributes:
        text: ``own`` (samples), ``data``, or ``teacher`` (its greedy answers, with plain cross-entropy on them).
        alpha: share of the distillation; 0 for cross-entropy on the data alone.
        split: layers of encoder and decoder. joined: the decoder-only model of as many layers and weights.
        reduction: of the KL. trained: whether the teacher has learnt anything.
    """

    text: str = "own"
    alpha: float = 0.9
    split: tuple[int, int] = (4, 2)
    joined: bool = False
    reduction: str = "masked"
    trained: bool = True


CE, OFF = Way("data", 0.0), Way("data")
ARMS = {
    "none": Arm(CE, "encoder-decoder, further cross-entropy on the true answers", "none"),
    "kd": Arm(Way(), "encoder-decoder, KL on its own samples and cross-entropy, alpha 0.9"),
    "kd-data": Arm(OFF, "encoder-decoder, KL on the true answers", "rival"),
    "seqkd": Arm(Way("teacher"), "encoder-decoder, cross-entropy on the teacher's greedy answers", "rival"),
    "decoder-none": Arm(Way("data", 0.0, joined=True), "decoder-only of equal size, cross-entropy", "rival"),
    "decoder-kd": Arm(Way(joined=True), "decoder-only of equal size, KL on its own samples", "rival"),
    "untrained-teacher": Arm(Way(trained=False), "as kd, of a teacher that knows nothing", "control"),
    "alpha-0.5": Arm(Way(alpha=0.5), "as kd, alpha 0.5", "ablation"),
    "alpha-1.0": Arm(Way(alpha=1.0), "as kd, alpha 1: no cross-entropy", "ablation"),
    "released": Arm(Way(reduction="released"), "as kd, the KL averaged over padding too", "ablation"),
}
SPLITS = {
    "none": ARMS["none"],
    "kd": ARMS["kd"],
    "kd-1+5": Arm(Way(split=(1, 5)), "as kd, 1 encoder and 5 decoder layers", "ablation"),
    "kd-3+3": Arm(Way(split=(3, 3)), "as kd, 3 encoder and 3 decoder layers", "rival"),
    "kd-5+1": Arm(Way(split=(5, 1)), "as kd, 5 encoder layers and 1 decoder layer", "ablation"),
}


class Docstrings(Experiment):
    """See the module."""

    name = "docstrings"
    title = "A function's first words in, one sentence out"
    testbed = "docstrings:plain"
    metric = "rouge_l"
    arms = ARMS
    claims = MAIN
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": 6, "full": 60}
    batch_size = {"smoke": 8, "full": 16}
    optimizer = OptimizerSettings(lr=5e-4, weight_decay=0.01, warmup=0.05)

    def prepare(self) -> dict[str, Any]:
        """Teacher, all fine-tuned students, the teacher's answers and the gate."""
        self.bed.teacher_answers()
        ways: list[Way] = [arm.setting for arm in self.arms.values()]
        sizes = {self.sizes(way): way for way in ways}
        before = {f"before {'+'.join(map(str, way.split))}{' joined' * way.joined}": way for way in sizes.values()}
        students = {name: self.bed.student_of(self.sizes(way)) for name, way in before.items()}
        test, models = self.bed.splits().test, {"teacher": self.bed.teacher(), **students}
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {name: self.assess(model, test) for name, model in models.items()},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def sizes(self, way: Way) -> SplitSizes:
        """Of an arm's student."""
        width, heads, groups = (64, 4, 2) if self.size == "full" else (16, 2, 1)
        return SplitSizes(width, *way.split, heads, groups, joined=way.joined)

    def run(self, arm: str, seed: int) -> Outcome:
        """Distil, then write and judge."""
        way: Way = self.arms[arm].setting
        plan = self.bed.plan
        student = self.bed.student_of(self.sizes(way))
        teacher = self.bed.teacher() if way.trained else self.bed.network(plan.teacher, 99)
        decoding = self.bed.decoding(temperature=TEMPERATURE, top_k=TOP_K)
        distiller = return_of_encoder(
            student, teacher, decoding, alpha=way.alpha, reduction=way.reduction, writer=self.writer(way, decoding),
            token=CrossEntropy() if way.text == "teacher" else None, optimizer=self.optimizer, seed=seed,
        )  # fmt: skip
        loader = TensorLoader(self.bed.pool(), self.batch_size[self.size], seed=seed, drop_last=True)
        begun = time.perf_counter()
        history = fit(distiller, loader, steps=self.steps[self.size], seed=seed, accelerator="cpu", log_every=10)
        seconds = time.perf_counter() - begun
        student = distiller.finish()
        curves = {name: history.curve(name)["y"] for name in history.names() if name != "loss"}
        cost = {"training_seconds": seconds, "core_parameters": float(core_parameters(student))}
        test = self.bed.splits().test
        return Outcome(self.assess(student, test), curves, cost, pictures=self.drawn(arm, seed, student, test))

    def writer(self, way: Way, decoding: Any) -> Writer:
        """Whose text the teacher is read on."""
        made: dict[str, Callable[[], Writer]] = {
            "data": DataText,
            "own": lambda: OnPolicy(decoding),
            "teacher": lambda: StoredText(self.bed.teacher_answers(), self.bed.pool().id),
        }
        return made[way.text]()

    def assess(self, model: nn.Module, split: Any) -> dict[str, float]:
        """ROUGE-L, token F1, exact matches and end of greedy answers; ``nll`` per token of the true ones (its
        exponential is the perplexity)."""
        greedy, wanted = self.bed.write(model, split), self.bed.references(split)
        found: dict[str, float] = self.bed.judge(greedy, wanted)
        texts = self.bed.text(greedy)
        scores = {"token_f1": token_f1(texts, wanted), "exact_match": exact_match(texts, wanted)}
        means = {name: sum(each) / len(each) for name, each in scores.items()}
        return {**found, **means, "nll": self.bed.nll(model, split)}

    def drawn(self, arm: str, seed: int, student: nn.Module, split: Any) -> dict[str, str]:
        """Some answers of three arms, the words of the true ones marked."""
        if seed or arm not in ("none", "kd", "decoder-kd"):
            return {}
        few = split.subset(torch.arange(8))
        answers = [text.split() or ["(nothing)"] for text in self.bed.text(self.bed.write(student, few))]
        wanted = [set(text.split()) for text in self.bed.references(few)]
        marked = [(words, [word in truth for word in words]) for words, truth in zip(answers, wanted)]
        return {"Answers to the first eight test prompts; marked are words of the true answers": kept_words(marked)}


class Splits(Docstrings):
    """How many of six layers read."""

    name = "splits"
    title = "Layers of the encoder and of the decoder"
    arms = SPLITS
    claims = SWEEP


class Long(Docstrings):
    """More of the code in: up to 64 tokens, four times as long as the answers."""

    name = "long"
    title = "Long code in, one sentence out"
    testbed = "docstrings:long"
    claims = BOTH


class Glosses(Docstrings):
    """The contrast, a symmetric task: a dictionary's words for a thing, and its field with two more general words."""

    name = "glosses"
    title = "A short gloss in, three short tags out"
    testbed = "glosses"
    metric = "exact_match"
    claims = GLOSSES
