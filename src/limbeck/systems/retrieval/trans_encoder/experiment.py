"""The experiments of Trans-Encoder: encoders made without a label, and the real MiniLM as who labels first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.alternation import mean_of
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.experiment.line_plots import lines
from limbeck.measure import pair_quality
from limbeck.models.pairs import Pair, pair_scores
from limbeck.models.sentence import SentenceEncoder
from limbeck.objectives import ScoreBCE, ScoreMSE
from limbeck.sources import Source, Table
from limbeck.testbeds import load

from .method import FORMS, Recipe, Step, TransEncoder


@dataclass(frozen=True)
class Plan:
    """An arm: how :class:`TransEncoder` is called. ``pool`` is a regime of the testbed."""

    cycles: int = 1
    encoders: tuple[str, ...] = ("first",)
    initialise: str = "fresh"
    forms: tuple[str, ...] = FORMS
    pool: str = "plain"
    mse: bool = False
    shuffled: bool = False
    by_minilm: bool = False


ABSTRACT, RECALLED, SHEET, OURS = "[abstract]", "[paper, recalled]", "[ours] the sheet's expectation", "[ours]"
# In Spearman correlation: a point, and half a point.
POINT, HALF = 0.01, 0.005


class PairExperiment(Experiment):
    """b_0 and what distillation makes of it: Spearman correlation with the grades of test pairs.

    ``bi_t`` and ``cross_t`` are of the last step of cycle t, of the first encoder: no label has a part in them; for
    b_0 and where there is no cross-encoder they are the bi-encoder's, which is what a cross-encoder is to beat.
    ``bi_auc``, ``cross_auc``: near pairs among all, after the last cycle. ``bi_both``, ``cross_both``: the mean score
    of two encoders, likewise. ``third_cycle``: bi_3 - bi_2. ``choice_of_dev``: what the cycle that is best on dev
    pairs has more than the last one, of the bi-encoder. ``agreement``: rank correlation of the first cross-encoder
    with the first labels' encoder on test pairs. ``asymmetry``: mean of |c(u, v) - c(v, u)|. ``negative_labels``:
    share of b_0's cosines below 0, which are clipped for the cross-encoder.
    """

    testbed = "sentence_pairs:plain"
    metric = "bi_1"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    # Pilots on seed 100: after one epoch the cross-encoder has not yet learned its labels.
    cross = Recipe(epochs=3, batch_size=32, lr=5e-4, warmup=0.1, objective=ScoreBCE)
    bi = Recipe(epochs=2, batch_size=64, lr=3e-4)

    def prepare(self) -> dict[str, Any]:
        bed, test = self.bed, self.test
        reference = {
            "MiniLM, supervised": bed.evaluate(bed.supervised(), test),
            "mean of word vectors": bed.mean_of_words(test),
        }
        for name in bed.plan.encoders:
            reference[f"b_0, {name}"] = bed.evaluate(bed.encoder(name), test)
            reference[f"before SimCSE, {name}"] = bed.evaluate(bed.plain(name), test)
            reference[f"random weights, {name}"] = bed.evaluate(bed.blank(name), test)
        return {"gate": bed.gate().as_dict(), "data": bed.data_hashes(), "reference": reference}

    def run(self, arm: str, seed: int) -> Outcome:
        plan: Plan | None = self.arms[arm].setting
        if plan is None:
            everywhere = {f"{form}_{cycle}": self.spearman(self.start) for form in FORMS for cycle in (1, 2, 3)}
            auc = self.bed.quality(self.start, self.test)["auc"]
            return Outcome({**everywhere, "bi_auc": auc, "cross_auc": auc, "third_cycle": 0.0, "choice_of_dev": 0.0})
        steps = [step for step in self.train(plan, seed) if step.cycle]
        scores = {(step.form, step.cycle, step.member): pair_scores(step.network, self.pairs) for step in steps}
        metrics = {f"{form}_{cycle}": self.spearman(s) for (form, cycle, member), s in scores.items() if not member}
        curves = {form: [v for name, v in metrics.items() if name.startswith(form)] for form in plan.forms}
        for form in plan.forms:
            last = [scores[form, plan.cycles, member] for member in range(len(plan.encoders))]
            metrics[f"{form}_auc"] = self.bed.quality(last[0], self.test)["auc"]
            if len(last) > 1:
                metrics[f"{form}_both"] = self.spearman(torch.stack(last).mean(0))
        if plan.cycles == 3:
            bi = [step for step in steps if step.form == "bi"]
            metrics["third_cycle"] = metrics["bi_3"] - metrics["bi_2"]
            metrics["choice_of_dev"] = metrics[f"bi_{max(bi, key=lambda step: step.dev).cycle}"] - metrics["bi_3"]
        if "cross" in plan.forms:
            labels = pair_scores(self.labeller(plan), self.pairs)
            metrics["agreement"] = pair_quality(scores["cross", 1, 0], labels)["spearman"]
            turned = pair_scores(steps[0].network, [(second, first) for first, second in self.pairs])
            metrics["asymmetry"] = float((turned - scores["cross", 1, 0]).abs().mean())
            metrics["negative_labels"] = float((labels < 0).float().mean())
        else:
            metrics |= {f"cross_{cycle}": metrics[f"bi_{cycle}"] for cycle in range(1, plan.cycles + 1)}
        return Outcome(metrics, curves, pictures=self.pictures(curves) if seed == 0 else {})

    def pictures(self, curves: Mapping[str, Sequence[float]]) -> dict[str, str]:
        """What the cycles bring, beside b_0."""
        count = max((len(values) for values in curves.values()), default=0)
        if count < 2:
            return {}
        drawn = {f"{form}-encoder": ([*range(1, count + 1)], values) for form, values in curves.items()}
        level = {"b_0": ([1, count], [self.spearman(self.start)] * 2)}
        return {"Spearman on test pairs by cycle": lines(drawn, x_label="cycle", y_label="Spearman", dashed=level)}

    def spearman(self, scores: Tensor) -> float:
        return pair_quality(scores, self.test.labels)["spearman"]

    def train(self, plan: Plan, seed: int) -> list[Step]:
        splits = self.beds[plan.pool].splits(seed)
        pairs = list(splits.train.input)
        labels = pair_scores(self.labeller(plan), pairs)
        if plan.shuffled:
            labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
        method = TransEncoder(
            [self.bed.encoder(name) for name in plan.encoders],
            plain=[self.bed.plain(name) for name in plan.encoders],
            cycles=plan.cycles,
            initialise=plan.initialise,
            forms=plan.forms,
            cross=replace(self.cross, objective=ScoreMSE) if plan.mse else self.cross,
            bi=self.bi,
            max_length=self.bed.max_length,
            seed=seed,
            accelerator="cpu",
            combine=FirstBy(labels) if plan.shuffled or plan.by_minilm else mean_of,
        )
        return method.fit(pairs, (list(splits.validation.input), splits.validation.labels)).steps_

    def labeller(self, plan: Plan) -> SentenceEncoder:
        """Who gives the first labels (in mutual arms the mean of two does)."""
        found: SentenceEncoder = self.bed.supervised() if plan.by_minilm else self.bed.encoder()
        return found

    # What no arm changes.

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

    @cached_property
    def pairs(self) -> list[Pair]:
        return list(self.test.input)

    @cached_property
    def start(self) -> Tensor:
        """b_0's scores of the test pairs."""
        return pair_scores(self.bed.encoder(), self.pairs)


class FirstBy:
    """The first labels are given, all later ones are the mean of the members'."""

    def __init__(self, scores: Tensor) -> None:
        self.first: Source | None = Table(torch.arange(len(scores)), {"score": scores})

    def __call__(self, labels: Sequence[Source]) -> Source:
        first, self.first = self.first, None
        return first or mean_of(labels)


BOTH = ("first", "second")
NONE = Arm(None, "b_0: SimCSE on single texts, no pair was ever labelled", "none")


class Glosses(PairExperiment):
    """Encoders of two and three layers, made here from nothing."""

    title = "Glosses of WordNet, encoders made without a label"
    arms = {
        "none": NONE,
        "bi-bi": Arm(Plan(forms=("bi",)), "1 cycle without a cross-encoder: retrained on own cosines", "rival"),
        "bi-bi-mutual": Arm(Plan(1, BOTH, forms=("bi",)), "the same on the mean cosine of two encoders", "rival"),
        "self": Arm(Plan(3), "self-distillation, 3 cycles, fresh starts", "method"),
        "mutual": Arm(Plan(1, BOTH), "mutual distillation with another encoder, 1 cycle", "method"),
        "sequential": Arm(Plan(initialise="sequential"), "1 cycle, weights flow from form to form", "ablation"),
        "mse": Arm(Plan(mse=True), "1 cycle, squared error for the cross-encoder too", "ablation"),
        "disjoint": Arm(Plan(pool="disjoint"), "1 cycle, no text of the test in the pool", "ablation"),
    }
    claims = (
        Claim("The first cross-encoder beats b_0 by a point", "self", "none", "cross_1", POINT, source=ABSTRACT),
        Claim("The first bi-encoder beats b_0 by half a point", "self", "none", "bi_1", HALF, source=ABSTRACT),
        Claim("The third cross-encoder beats b_0 by a point", "self", "none", "cross_3", POINT, source=ABSTRACT),
        Claim("The third bi-encoder beats b_0 by half a point", "self", "none", "bi_3", HALF, source=ABSTRACT),
        Claim(
            "Gains saturate: the third cycle adds less than half a point",
            "self",
            "none",
            "third_cycle",
            -HALF,
            better="lower",
            source=RECALLED,
        ),
        Claim("Mutual beats self-distillation: bi-encoder", "mutual", "self", "bi_1", source=ABSTRACT),
        Claim("Mutual beats self-distillation: cross-encoder", "mutual", "self", "cross_1", source=ABSTRACT),
        Claim("The cross-encoder is what helps, not the retraining", "self", "bi-bi", "bi_1", source=SHEET),
        Claim(
            "Mutual distillation is more than two encoders' mean cosine distilled",
            "mutual",
            "bi-bi-mutual",
            "bi_1",
            source=SHEET,
        ),
        Claim("Weights that flow beat fresh starts: bi-encoder", "sequential", "self", "bi_1", source=RECALLED),
        Claim("Weights that flow beat fresh starts: cross-encoder", "sequential", "self", "cross_1", source=RECALLED),
        Claim("Cross-entropy beats squared error for the cross-encoder", "self", "mse", "cross_1", source=RECALLED),
        Claim("... and for the bi-encoder that it labels for", "self", "mse", "bi_1", source=RECALLED),
        Claim(
            "It works without the test texts in the pool: b_0 plus half a point",
            "disjoint",
            "none",
            "bi_1",
            HALF,
            source=SHEET,
        ),
        Claim("Test texts in the pool are worth less than a point", "disjoint", "self", "bi_1", -POINT, source=SHEET),
        Claim(
            "Without any label the last cycle is within half a point of dev's choice",
            "self",
            "none",
            "choice_of_dev",
            -HALF,
            better="lower",
            source=SHEET,
        ),
    )


class MiniLM(PairExperiment):
    """The real MiniLM, which people's labels taught, says how alike the pairs are; small encoders go on from there."""

    title = "Glosses of WordNet, the first labels from the real MiniLM"
    arms = {
        "none": NONE,
        "direct": Arm(Plan(forms=("bi",), by_minilm=True), "b_0 trained on MiniLM's cosines", "rival"),
        "self": Arm(Plan(by_minilm=True), "MiniLM labels for the cross-encoder, which labels for b_0", "method"),
        "shuffled": Arm(Plan(shuffled=True, by_minilm=True), "MiniLM's labels of other pairs", "control"),
    }
    claims = (
        Claim("The cross-encoder beats b_0 by a point", "self", "none", "cross_1", POINT, source=OURS),
        Claim("The bi-encoder beats b_0 by half a point", "self", "none", "bi_1", HALF, source=OURS),
        Claim("The cross-encoder learns more from MiniLM than a bi-encoder", "self", "direct", "cross_1", source=OURS),
        Claim("A detour over a cross-encoder beats MiniLM's own labels", "self", "direct", "bi_1", source=OURS),
        Claim("It is the label of the very pair", "self", "shuffled", "cross_1", 0.1, source="[ours] control"),
    )


EXPERIMENTS = {"glosses": Glosses, "minilm": MiniLM}
