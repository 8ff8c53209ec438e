"""A real model as teacher: three layers of SmolLM2 learn from all thirty, over a cache of the 64 likeliest tokens.

No claim about text is made here: in so few steps three of 30 layers do not learn to write. What is compared is how fast
the student's distributions come close to the teacher's under each divergence, on held-out sentences. Every arm has the
cross-entropy on the sentences too, as the method has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import losses, testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.language import Decoding, Reviser, SequenceDistiller, Sequences, answer_logits, without_answers
from limbeck.losses import cross_entropy, forward_kl
from limbeck.objectives import (
    KL,
    ClippedKL,
    DataCrossEntropy,
    JensenShannon,
    LogitObjective,
    Needs,
    Objective,
    ReverseKL,
)
from limbeck.signals import Batch, Signals
from limbeck.sources import Live, Source
from limbeck.testbeds.recipe import seeded

from .method import mgsr_objective


@dataclass(frozen=True)
class Way:
    """``token``: makes the term against the teacher, None for none; ``shuffled``: of other positions' answers;
    ``revise``: also let the teacher correct samples of the finished student."""

    token: Callable[[], Objective] | None
    shuffled: bool = False
    revise: bool = False


def window() -> Objective:
    """The learned window over the 64 cached tokens."""
    return ClippedKL(k=64)


def nucleus() -> Objective:
    """The top 95%, as far as the 64 cached tokens reach."""
    return ClippedKL((0.0, 0.95), k=64, softness=0.0)


def symmetric() -> Objective:
    """Forward plus reverse KL."""
    return LogitObjective(losses.jeffreys, name="jeffreys")


def variation() -> Objective:
    """Total variation."""
    return LogitObjective(losses.total_variation, name="variation")


def skewed() -> Objective:
    """Forward KL against the student mixed with 10% teacher."""
    return LogitObjective(losses.skewed_kl, name="skewed")


def skewed_reverse() -> Objective:
    """Reverse KL against the teacher mixed with 10% student."""
    return LogitObjective(losses.skewed_reverse_kl, name="skewed_reverse")


ARMS = {
    "none": Arm(Way(None, revise=True), "cross-entropy on the sentences alone", "none"),
    "kl": Arm(Way(KL, revise=True), "forward KL, the 64 tokens and the rest as one outcome", "rival"),
    "dac": Arm(Way(window, revise=True), "KL in a learned window of the 64 tokens"),
    "top-p": Arm(Way(nucleus), "KL over a fixed nucleus of 95%", "rival"),
    "reverse-kl": Arm(Way(ReverseKL), "reverse KL with rest", "rival"),
    "jeffreys": Arm(Way(symmetric), "forward plus reverse KL with rest", "rival"),
    "jsd": Arm(Way(JensenShannon), "Jensen-Shannon divergence with rest", "rival"),
    "variation": Arm(Way(variation), "total variation with rest", "rival"),
    "skewed": Arm(Way(skewed), "skewed forward KL with rest", "rival"),
    "skewed-reverse": Arm(Way(skewed_reverse), "skewed reverse KL with rest", "rival"),
    "shuffled": Arm(Way(KL, shuffled=True), "forward KL to what the teacher says of another sentence", "control"),
}
SHEET = "the project's sheet"
PAPER = "ablation, as restated by reviews"
CLAIMS = [
    Claim("A real teacher's distribution teaches more than the words alone", "kl", "none", "kl", 0.0, "lower", SHEET),
    Claim("What the teacher says of this very sentence counts", "kl", "shuffled", "kl", 0.0, "lower", "control"),
    Claim(
        "The learned window comes closer to the teacher than the whole with rest",
        "dac",
        "kl",
        "kl",
        0.0,
        "lower",
        PAPER,
    ),
    Claim("The learned window comes closer than a fixed nucleus", "dac", "top-p", "kl", 0.0, "lower", PAPER),
    Claim(
        "The learned window agrees more often than the whole with rest", "dac", "kl", "agreement", 0.0, "higher", PAPER
    ),
    *(
        Claim(f"The learned window agrees more often than {name}", "dac", name, "agreement", 0.0, "higher", PAPER)
        for name in ("reverse-kl", "jeffreys", "jsd", "variation", "skewed", "skewed-reverse")
    ),
]


class SmolLM2(Experiment):
    """See the module."""

    name = "smollm2"
    title = "Three layers of SmolLM2 learn from thirty"
    testbed = "smollm2:plain"
    metric = "kl"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": 4, "full": 16}
    optimizer = OptimizerSettings(lr=5e-4, weight_decay=0.01, warmup=0.1)

    def prepare(self) -> dict[str, Any]:
        """The unpacked model, the cache of its answers, the cut student, the gate."""
        gate, test = self.bed.gate().as_dict(), self.bed.splits().test
        reference = {"student before": self.bed.evaluate(self.bed.student(), test)}
        return {"gate": gate, "data": self.bed.data_hashes(), "reference": reference}

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Distil from the cache, then compare on held-out sentences."""
        way: Way = self.arms[arm].setting
        splits, source = self.bed.splits(), self.bed.signals()
        objective = seeded(lambda: self.objective(way), seed)
        distiller = SequenceDistiller(
            self.bed.student(), objective, Shuffled(source) if way.shuffled else source,
            optimizer=self.optimizer, seed=seed,
        )  # fmt: skip
        loader = TensorLoader(splits.train, 4, seed=seed, drop_last=True)
        history = fit(distiller, loader, steps=self.steps[self.size], seed=seed, accelerator="cpu", log_every=2)
        student = distiller.finish()
        metrics = self.bed.evaluate(student, splits.test)
        if way.revise:
            metrics |= self.revised(student, seed)
        names = ("kl_all", "kept_mass", "kept_classes")
        curves = {name: history.curve(name)["y"] for name in names if name in history.names()}
        return Outcome(metrics, curves)

    @staticmethod
    def objective(way: Way) -> Objective:
        """What an arm minimises, and what is watched in all of them."""
        chosen = DataCrossEntropy() if way.token is None else mgsr_objective(None, token=way.token())
        return chosen + Watched()

    def revised(self, student: nn.Module, seed: int, count: int = 8) -> dict[str, float]:
        """NLL per token that SmolLM2 gives to samples of the student before and after one correction."""
        test, teacher = self.bed.splits().test, self.bed.teacher()
        rows = torch.arange(min(count, len(test)))
        given = without_answers(Sequences.of(test.input)).select(rows)
        end = self.bed.tokenizer.eos_token_id
        decoding, views = Decoding(self.bed.plan.answer, end, end), test.id[rows] + 1000 * (seed + 1)
        raw = decoding(student, given, views)
        mended = Reviser(decoding)(student, Live(teacher, forward=answer_logits), raw, views)
        return {"smollm2_nll_raw": self.nll(teacher, raw), "smollm2_nll_revised": self.nll(teacher, mended)}

    @staticmethod
    @torch.inference_mode()
    def nll(model: nn.Module, written: Sequences) -> float:
        """Per token of a text."""
        batch = written.batch()
        return float(cross_entropy(answer_logits(model, batch)["logits"], batch["target"], mask=batch["mask"]))


class Watched(Objective):
    """Logs the forward KL with rest, ``kl_all``, whatever is trained: batches are new, so this is a held-out value."""

    needs = Needs(student="logits", teacher="logits")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            self.observe(kl_all=forward_kl(student["logits"], teacher["logits"], mask=batch["mask"]))  # type: ignore[arg-type]
        return {}


class Shuffled(Source):
    """Answers of a source, each for the next sample of the batch."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, batch: Batch, needs: Any = ()) -> Signals:
        found = self.source(batch, needs)
        return {
            name: value.roll(1, 0) if isinstance(value, Tensor) else value.map(lambda part: part.roll(1, 0))
            for name, value in found.items()
        }

    def fingerprint(self) -> str:
        return f"shuffled {self.source.fingerprint()}"
