"""The main experiment: a fine-tuned student learns to describe functions, from many texts and at three levels.

Every arm of a seed begins with the same fine-tuned student, sees the same prompts in the same order for the same number
of steps, and has the same cross-entropy on the true answers; what differs is the second term and the text it is
computed on. The last step counts. Margins and sizes were set on seed 100, which is not recorded and whose test figures
were seen; the learning rate is from the sheet's range.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.language import (
    DataText,
    FunctionWordSpans,
    OnPolicy,
    RandomSpans,
    SequenceDistiller,
    Sequences,
    StoredText,
    Writer,
    answer_logits,
    token_divergence,
)
from limbeck.losses import cross_entropy
from limbeck.measure.text import distinct_n, excess_error, rouge_l
from limbeck.objectives import KL, ClippedKL, CrossEntropy, DataCrossEntropy, Objective
from limbeck.objectives.language import Spans
from limbeck.testbeds.recipe import seeded

from .claims import CLAIMS
from .method import mgsr_objective, scrg

#: Samples of which metrics are means; no seed of training is among them.
SAMPLES = (1001, 1002, 1003)


@dataclass(frozen=True)
class Way:
    """How an arm teaches.

    Attributes:
        text: ``data``, ``own`` (samples), ``revised``, ``random-place``, ``replay`` (revised, from a buffer too),
            ``teacher-greedy`` or ``teacher-samples``.
        token: makes the term that compares distributions on that text; None for the cross-entropy on the data alone.
        spans: ``phrases`` or ``random``; None for no span term.
        span_weight: of that term.
    """

    text: str = "revised"
    token: Callable[[], Objective] | None = ClippedKL
    spans: str | None = None
    span_weight: float = 1.0


def nucleus() -> Objective:
    """KL over the teacher's top 95% of probability."""
    return ClippedKL((0.0, 0.95), softness=0.0)


def top_classes() -> Objective:
    """KL over the teacher's 5% most probable tokens of 2,048."""
    return ClippedKL((0.0, 1.0), k=102, softness=0.0)


ARMS = {
    "none": Arm(Way("data", None), "further fine-tuning on the true answers alone", "none"),
    "kl-data": Arm(Way("data", KL), "forward KL on the true answers", "rival"),
    "seqkd": Arm(Way("teacher-greedy", CrossEntropy), "cross-entropy on the teacher's greedy answers", "rival"),
    "gkd": Arm(Way("own", KL), "forward KL on the student's own samples", "rival"),
    "scrg": Arm(Way(token=KL), "forward KL on revised samples", "ablation"),
    "scrg-dac": Arm(Way(), "KL in a learned window on revised samples", "ablation"),
    "full": Arm(Way(spans="phrases"), "learned window and phrases on revised samples"),
    "full-span100": Arm(Way(spans="phrases", span_weight=100.0), "the same, phrases weighted 100", "ablation"),
    "replay": Arm(Way("replay", spans="phrases"), "the same, ever more texts from a buffer", "ablation"),
    "top-p": Arm(Way(token=nucleus), "KL over a fixed nucleus of 95% on revised samples", "rival"),
    "top-5": Arm(Way(token=top_classes), "KL over the 5% most probable tokens on revised samples", "rival"),
    "random-spans": Arm(Way(spans="random"), "learned window, random pieces in the place of phrases", "control"),
    "random-place": Arm(
        Way("random-place", KL), "forward KL on samples revised at a random place where they differ", "control"
    ),
    "teacher-samples": Arm(Way("teacher-samples", KL), "forward KL on samples of the teacher", "control"),
}


class Docstrings(Experiment):
    """See the module."""

    name = "docstrings"
    title = "A small language model taught on its own corrected text"
    testbed = "docstrings:plain"
    metric = "rouge_l"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": 10, "full": 60}
    batch_size = {"smoke": 8, "full": 32}
    optimizer = OptimizerSettings(lr=5e-4, weight_decay=0.01, warmup=0.05)

    def prepare(self) -> dict[str, Any]:
        """Teacher, fine-tuned student, the teacher's answers and the gate."""
        self.bed.teacher_answers()
        self.bed.teacher_answers(seed=0)
        bounds = {"teacher": self.bed.teacher(), "student before": self.bed.student()}
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {name: self.assess(model) for name, model in bounds.items()},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Distil, then write and judge."""
        way: Way = self.arms[arm].setting
        pool, objective = self.bed.pool(), seeded(lambda: self.objective(way), seed)
        distiller = SequenceDistiller(
            self.bed.student(), objective, self.bed.teacher(), writer=self.writer(way), seed=seed,
            optimizer=self.optimizer, log_gradient_norms=arm.startswith("full"),
        )  # fmt: skip
        loader = TensorLoader(pool, self.batch_size[self.size], seed=seed, drop_last=True)
        begun = time.perf_counter()
        history = fit(distiller, loader, steps=self.steps[self.size], seed=seed, accelerator="cpu", log_every=10)
        seconds = time.perf_counter() - begun
        metrics = self.assess(distiller.finish())
        curves = {name.replace("/", "_"): history.curve(name)["y"] for name in history.names() if name != "loss"}
        if "kept_mass" in curves:
            metrics |= {name: curves[name][-1] for name in ("kept_mass", "kept_classes")}
        written = self.steps[self.size] * self.batch_size[self.size]
        return Outcome(metrics, curves, {"training_seconds": seconds, "samples_per_second": written / seconds})

    def writer(self, way: Way) -> Writer:
        """Whose text an arm learns from."""
        decoding = self.bed.decoding()
        if way.text.startswith("teacher-"):
            texts = self.bed.teacher_answers(None if way.text == "teacher-greedy" else 0)
            return StoredText(texts, self.bed.pool().id)
        made: dict[str, Callable[[], Writer]] = {
            "data": DataText,
            "own": lambda: OnPolicy(decoding),
            "revised": lambda: scrg(decoding),
            "random-place": lambda: scrg(decoding, rule="random"),
            "replay": lambda: scrg(decoding, replay=10 * self.batch_size[self.size]),
        }
        return made[way.text]()

    def objective(self, way: Way) -> Objective:
        """What an arm minimises."""
        if way.token is None:
            return DataCrossEntropy()
        spans: dict[str, Callable[[], Spans]] = {
            "phrases": lambda: FunctionWordSpans(self.bed.pieces(), self.bed.special),
            "random": RandomSpans,
        }
        chosen = spans[way.spans]() if way.spans else None
        return mgsr_objective(chosen, token=way.token(), span_weight=way.span_weight)

    def assess(self, student: nn.Module) -> dict[str, float]:
        """Of greedy answers and of samples to the test prompts, and of the student's distributions."""
        test, teacher = self.bed.splits().test, self.bed.teacher()
        references = self.bed.references(test)
        found: dict[str, float] = self.bed.evaluate(student, test)
        samples = [self.bed.write(student, test, seed) for seed in SAMPLES]
        texts = [self.bed.text(one) for one in samples]
        scores = [score for one in texts for score in rouge_l(one, references)]
        found["rouge_l_sampled"] = sum(scores) / len(scores)
        found["distinct_2"] = sum(distinct_n(one) for one in texts) / len(texts)
        found["teacher_nll"], own, own_mask = self.read(student, teacher, samples[0])
        _, theirs, mask = self.read(student, teacher, self.bed.write(teacher, test, SAMPLES[0]))
        bias = excess_error(own, own_mask, theirs, mask)
        found |= {"kl_own": bias["own"], "kl_teacher": bias["reference"], "excess_error": bias["excess"]}
        return found

    @staticmethod
    @torch.inference_mode()
    def read(student: nn.Module, teacher: nn.Module, written: Sequences) -> tuple[float, Tensor, Tensor]:
        """The teacher's NLL per token of a text; KL(teacher || student) ``[B, A]`` on it; which tokens count."""
        batch = written.batch()
        ours, theirs = (answer_logits(model, batch)["logits"] for model in (student, teacher))
        nll = float(cross_entropy(theirs, batch["target"], mask=batch["mask"]))
        return nll, token_divergence(ours, theirs, batch["mask"]), batch["mask"]
