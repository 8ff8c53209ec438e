"""The experiments of Trans-Encoder: small encoders made without a label, and a large one that has seen many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.alternation import mean_of
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.experiment.line_plots import lines
from limbeck.models.pairs import CrossEncoder, pair_scores
from limbeck.objectives import ScoreBCE, ScoreMSE
from limbeck.sources import Source, Table
from limbeck.sources.average import Average
from limbeck.testbeds import load

from .method import FORMS, Recipe, TransEncoder


@dataclass(frozen=True)
class Plan:
    """An arm: how :class:`TransEncoder` is called. ``pool`` is a regime of the testbed."""

    cycles: int = 3
    encoders: tuple[str, ...] = ("first",)
    initialise: str = "fresh"
    forms: tuple[str, ...] = FORMS
    pool: str = "plain"
    mse: bool = False
    shuffled: bool = False
    select: bool = False


@dataclass(frozen=True)
class Scored:
    """One network of a chain: its test scores and its Spearman correlation on dev pairs."""

    cycle: int
    form: str
    member: int
    test: Tensor
    dev: float
    asymmetry: float


BOTH = ("first", "second")
ARMS = {
    "none": Arm(None, "b_0: masked language modelling and SimCSE, no pair was ever labelled", "none"),
    "bi-bi": Arm(Plan(forms=("bi",)), "3 cycles without a cross-encoder: retrained on own cosines", "rival"),
    "bi-bi-mutual": Arm(
        Plan(forms=("bi",), encoders=BOTH),
        "the same on the mean cosine of two encoders",
        "rival",
    ),
    "self-1": Arm(Plan(cycles=1), "self-distillation, 1 cycle, fresh starts", "method"),
    "self-2": Arm(Plan(cycles=2), "self-distillation, 2 cycles", "method"),
    "self-3": Arm(Plan(), "self-distillation, 3 cycles", "method"),
    "mutual-1": Arm(Plan(cycles=1, encoders=BOTH), "mutual distillation with another encoder, 1 cycle", "method"),
    "mutual-3": Arm(Plan(encoders=BOTH), "mutual distillation, 3 cycles", "method"),
    "self-3-dev": Arm(Plan(select=True), "3 cycles, best step on labelled dev pairs: the paper's protocol", "method"),
    "sequential-3": Arm(Plan(initialise="sequential"), "3 cycles, weights flow from form to form", "ablation"),
    "start-1": Arm(Plan(cycles=1, initialise="start"), "1 cycle, both forms begin at b_0", "ablation"),
    "mse-1": Arm(Plan(cycles=1, mse=True), "1 cycle, squared error for the cross-encoder too", "ablation"),
    "disjoint-1": Arm(Plan(cycles=1, pool="disjoint"), "1 cycle, no text of the test in the pool", "ablation"),
    "shuffled-1": Arm(Plan(cycles=1, shuffled=True), "1 cycle, labels of other pairs", "control"),
}

ABSTRACT, RECALLED, SHEET = "[abstract]", "[paper, recalled]", "[ours] the sheet's expectation"
# In Spearman correlation: a point, and half a point.
POINT, HALF = 0.01, 0.005


class PairExperiment(Experiment):
    """b_0 and what distillation makes of it, measured in Spearman correlation with the grades of test pairs.

    Metrics ``bi`` and ``cross`` are those of the last step of the last cycle, of the first encoder: no label has a part
    in them. ``bi_dev`` and ``cross_dev`` are of the cycle that is best on dev pairs. An arm without a cross-encoder
    gives its bi-encoder's number as ``cross`` too, since that is what a cross-encoder is to beat. ``..._auc``: near
    pairs among all; ``asymmetry``: mean of |c(u, v) - c(v, u)|; ``..._both``: the mean score of two encoders;
    ``negative_labels``: share of b_0's cosines below 0, which are clipped for the cross-encoder.
    """

    testbed = "sentence_pairs:plain"
    metric = "bi"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    cross = Recipe(epochs=1, batch_size=32, lr=1e-3, warmup=0.1, objective=ScoreBCE, select_every=48)
    bi = Recipe(epochs=2, batch_size=64, lr=3e-4, objective=ScoreMSE, select_every=24)

    def prepare(self) -> dict[str, Any]:
        bed = self.beds["plain"]
        test = bed.splits().test
        reference = {"MiniLM, supervised": bed.evaluate(bed.supervised(), test)}
        for name in BOTH:
            reference[f"b_0, {name}"] = bed.evaluate(bed.encoder(name), test)
            reference[f"language model, {name}"] = bed.evaluate(bed.plain(name), test)
        return {"gate": bed.gate().as_dict(), "data": bed.data_hashes(), "reference": reference}

    def run(self, arm: str, seed: int) -> Outcome:
        plan: Plan | None = self.arms[arm].setting
        scored = self.start(("first",)) if plan is None else self.chain(plan, seed)
        cycles = 0 if plan is None else min(plan.cycles, self.longest)
        scored = [one for one in scored if one.cycle <= cycles]
        curves = {
            form: [self.spearman(one.test) for one in scored if one.form == form and not one.member] for form in FORMS
        }
        metrics: dict[str, float] = {}
        for form in FORMS:
            # b_0 stands for a form that the arm has not.
            own = [one for one in scored if one.form == form and one.cycle] or [
                one for one in scored if one.form == "bi"
            ]
            found = self.bed.quality(last := self.latest(own, 0), self.test)
            metrics |= {form: found["spearman"], f"{form}_auc": found["auc"]}
            metrics[f"{form}_dev"] = self.spearman(max((o for o in own if not o.member), key=lambda o: o.dev).test)
            if len(members := {one.member for one in own}) > 1:
                both = torch.stack([last, *(self.latest(own, member) for member in sorted(members - {0}))]).mean(0)
                metrics[f"{form}_both"] = self.spearman(both)
        if plan is not None and "cross" in plan.forms:
            metrics["asymmetry"] = [one for one in scored if one.form == "cross" and not one.member][-1].asymmetry
        metrics["negative_labels"] = float((scored[0].test < 0).float().mean())
        pictures = {}
        if seed == 0 and cycles > 1:
            drawn = {f"{form}-encoder": (self.places(form, plan, len(y)), y) for form, y in curves.items() if y}
            pictures = {"Spearman on test pairs by cycle": lines(drawn, x_label="cycle", y_label="Spearman")}
        return Outcome(metrics, {name: y for name, y in curves.items() if y}, pictures=pictures)

    @staticmethod
    def places(form: str, plan: Plan | None, count: int) -> list[int]:
        """Cycles of a curve; b_0 is the bi-encoder's cycle 0."""
        return list(range(count)) if form == "bi" else list(range(1, count + 1))

    def latest(self, scored: Sequence[Scored], member: int) -> Tensor:
        """Test scores of a member's newest network."""
        return [one for one in scored if one.member == member][-1].test

    def spearman(self, scores: Tensor) -> float:
        return float(self.bed.quality(scores, self.test)["spearman"])

    # Chains: arms that differ in the number of cycles alone are one.

    _kept: tuple[int, dict[Plan, tuple[list[Scored], set[int]]]] = (-1, {})

    def chain(self, plan: Plan, seed: int) -> list[Scored]:
        """Every network of an arm, and b_0. An arm that is run again is trained again."""
        if self._kept[0] != seed:
            self._kept = (seed, {})
        alike = [one.setting for one in self.arms.values() if one.setting]
        longest = max(one.cycles for one in alike if replace(one, cycles=plan.cycles) == plan)
        whole = replace(plan, cycles=min(longest, self.longest))
        scored, served = self._kept[1].get(whole, ([], {plan.cycles}))
        if plan.cycles in served:
            scored, served = self.train(whole, seed), set()
        self._kept[1][whole] = (scored, {*served, plan.cycles})
        return scored

    def train(self, plan: Plan, seed: int) -> list[Scored]:
        splits = self.beds[plan.pool].splits(seed)
        pairs = list(splits.train.input)
        dev = (list(splits.validation.input), splits.validation.labels)
        cross = replace(self.cross, objective=ScoreMSE) if plan.mse else self.cross
        method = TransEncoder(
            [self.bed.encoder(name) for name in plan.encoders],
            plain=[self.bed.plain(name) for name in plan.encoders],
            cycles=plan.cycles,
            initialise=plan.initialise,
            forms=plan.forms,
            cross=cross,
            bi=self.bi,
            max_length=self.bed.max_length,
            select=plan.select,
            seed=seed,
            accelerator="cpu",
            combine=partial(shuffled, seed=seed, count=len(pairs)) if plan.shuffled else mean_of,
        ).fit(pairs, dev)
        test: list[Any] = list(splits.test.input)
        found = self.start(plan.encoders)
        for step in method.steps_:
            if step.cycle:
                scores = pair_scores(step.network, test)
                turned = (
                    pair_scores(step.network, [(b, a) for a, b in test])
                    if isinstance(step.network, CrossEncoder)
                    else scores
                )
                asymmetry = float((scores - turned).abs().mean())
                found.append(Scored(step.cycle, step.form, step.member, scores, step.dev, asymmetry))
        return found

    def start(self, names: Sequence[str]) -> list[Scored]:
        """b_0 of every member."""
        splits = self.bed.splits()
        found = []
        for member, name in enumerate(names):
            encoder = self.bed.encoder(name)
            dev = self.bed.evaluate(encoder, splits.validation)["spearman"]
            found.append(Scored(0, "bi", member, pair_scores(encoder, splits.test.input), dev, 0.0))
        return found

    @property
    def longest(self) -> int:
        """Most cycles at this size."""
        return 1 if self.size == "smoke" else 3

    @cached_property
    def beds(self) -> Mapping[str, Any]:
        """The testbed with and without test texts in the pool."""
        return {
            name: load(f"sentence_pairs:{name}", "smoke" if self.size == "smoke" else "full")
            for name in ("plain", "disjoint")
        }

    @property
    def bed(self) -> Any:
        return self.beds["plain"]

    @cached_property
    def test(self) -> Any:
        return self.bed.splits().test


def shuffled(labels: Sequence[Source], *, seed: int, count: int) -> Source:
    """The labels of other pairs."""
    ids = torch.arange(count)
    signals = Average(labels)({"id": ids}, ("score",))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Table(ids, {"score": torch.as_tensor(signals["score"])[order]})


class Glosses(PairExperiment):
    """Encoders of two and three layers, made here from nothing."""

    title = "Glosses of WordNet, encoders made without a label"
    arms = ARMS
    claims = (
        Claim("The first cross-encoder beats b_0 by a point", "self-1", "none", "cross", POINT, source=ABSTRACT),
        Claim("The first bi-encoder beats b_0 by half a point", "self-1", "none", "bi", HALF, source=ABSTRACT),
        Claim(
            "After three cycles the cross-encoder beats b_0 by a point",
            "self-3",
            "none",
            "cross",
            POINT,
            source=ABSTRACT,
        ),
        Claim(
            "After three cycles the bi-encoder beats b_0 by half a point", "self-3", "none", "bi", HALF, source=ABSTRACT
        ),
        Claim("Mutual beats self-distillation: bi-encoder", "mutual-3", "self-3", "bi", source=ABSTRACT),
        Claim("Mutual beats self-distillation: cross-encoder", "mutual-3", "self-3", "cross", source=ABSTRACT),
        Claim(
            "Gains saturate: the third cycle adds less than half a point",
            "self-2",
            "self-3",
            "bi",
            -HALF,
            source=RECALLED,
        ),
        Claim("The cross-encoder is what helps, not the retraining", "self-3", "bi-bi", "bi", source=SHEET),
        Claim(
            "Mutual distillation is more than an ensemble of cosines distilled",
            "mutual-3",
            "bi-bi-mutual",
            "bi",
            source=SHEET,
        ),
        Claim(
            "Weights that flow from form to form beat fresh starts: bi-encoder",
            "sequential-3",
            "self-3",
            "bi",
            source=RECALLED,
        ),
        Claim(
            "Weights that flow from form to form beat fresh starts: cross-encoder",
            "sequential-3",
            "self-3",
            "cross",
            source=RECALLED,
        ),
        Claim("Cross-entropy beats squared error for the cross-encoder", "self-1", "mse-1", "cross", source=RECALLED),
        Claim("... and for the bi-encoder that it labels for", "self-1", "mse-1", "bi", source=RECALLED),
        Claim(
            "It works without the test texts in the pool: b_0 plus half a point",
            "disjoint-1",
            "none",
            "bi",
            HALF,
            source=SHEET,
        ),
        Claim("Test texts in the pool are worth less than a point", "disjoint-1", "self-1", "bi", -POINT, source=SHEET),
        Claim(
            "Without any label the last step is within half a point of dev's choice",
            "self-3",
            "self-3-dev",
            "bi",
            -HALF,
            source=SHEET,
        ),
        Claim("It is the label of the very pair", "self-1", "shuffled-1", "cross", 0.1, source="[ours] control"),
    )


EXPERIMENTS = {"glosses": Glosses}
