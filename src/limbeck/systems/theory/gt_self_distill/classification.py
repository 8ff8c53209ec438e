"""The network track's experiments: small networks under wrong labels, and the same with right ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.label_noise import flip_labels
from limbeck.data.split import Split
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.models.small import MLP, SmallCNN
from limbeck.testbeds import load
from limbeck.testbeds.base import Check, Gate
from limbeck.testbeds.recipe import kept_numbers

from .bench import Bench, Grown, Recipe, distilled, early, plain, swept, tuned
from .method import OPTIMAL

CHAIN = {
    "alpha-0": Arm(distilled(0.0), "pure self-distillation", "rival"),
    "alpha-0.25": Arm(distilled(0.25), "a quarter of the truth", "method"),
    "alpha-0.5": Arm(distilled(0.5), "half the truth", "method"),
    "alpha-0.75": Arm(distilled(0.75), "three quarters of the truth", "method"),
    "star": Arm(distilled(OPTIMAL), "alpha* from two networks, before every generation", "method"),
}
NONE = {"none": Arm(plain, "one network on the labels", "none")}
RIVALS = {
    "early": Arm(early, "one network, stopped at its best epoch on validation samples", "rival"),
    "tuned": Arm(tuned, "one network, the penalty of four that is best on validation samples", "rival"),
}
CONTROLS = {
    "again": Arm(distilled(1.0), "alpha 1: trained anew on the labels, no teacher", "control"),
    "shuffled": Arm(
        distilled(0.5, shuffled=True), "half the truth, half what the teacher says of other samples", "control"
    ),
}
GRID = {"grid": Arm(swept, "one step only, the best of eleven alphas, a network each", "rival")}
CLEAN_STAR = {
    "star-clean": Arm(distilled(OPTIMAL, clean=True), "alpha* from validation samples without wrong labels", "ablation")
}


class NoisyLabels(Experiment):
    """Plain training, its rivals, and chains of four generations, under wrong labels.

    ``noise`` is the share of wrong labels among training and validation samples: who has no clean labels to train on
    has none to choose by. Test labels are right. All arms of a seed share their first network. The last epoch of the
    last generation counts (but for ``early``), and every choice is made by squared error on validation samples.

    Metrics: those of classification on the test split; ``first_step_accuracy`` after the first distillation;
    ``spread`` of the accuracy over generations; ``wrong_labels_learned``, the share of wrong training labels that the
    network gives back; ``alpha_1`` and on, the unclipped estimates; ``trainings`` it took.
    """

    noise = 0.3
    train_samples = 1000
    validation_samples = 297
    recipe = Recipe(epochs=60, batch_size=64, learning_rate=1e-2)
    gate_seed = 1000
    _latest: Bench | None = None

    def network(self) -> nn.Module:
        """A fresh network."""
        return MLP(64, (128,), 10)

    def prepare(self) -> dict[str, Any]:
        content = {"recipe": asdict(self.recipe_now), "data": self.bed.data_hashes(), "network": repr(self.network()),
                   "samples": self.train_samples, "noise": self.noise}  # fmt: skip
        figures = kept_numbers(f"gate-gt-self-distill-{self.size}", content, self._figures)
        bounds = {"accuracy": (0.3, 0.99)}
        if self.noise:
            # What was not lost to the noise cannot be won back.
            bounds["lost_to_noise"] = (0.02, 1.0)
        gate = Gate(tuple(Check(name, figures[name], *bound) for name, bound in bounds.items()))
        return {"gate": gate.as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    def _figures(self) -> dict[str, float]:
        benches = [self.bench(self.gate_seed, noise) for noise in (self.noise, 0.0)]
        noisy, clean = (self.bed.evaluate(one.plain()[0], one.test)["accuracy"] for one in benches)
        return {"accuracy": noisy, "lost_to_noise": clean - noisy}

    def run(self, arm: str, seed: int) -> Outcome:
        if self._latest is None or self._latest.seed != seed:
            # The arms of a seed follow one another, and share their first network.
            self._latest = self.bench(seed, self.noise)
        bench = self._latest
        grown: Grown = self.arms[arm].setting(bench)
        every = [self.bed.evaluate(network, bench.test) for network in grown.networks]
        accuracies = [one["accuracy"] for one in every]
        metrics = {**every[-1], **grown.metrics, "spread": float(np.ptp(accuracies)), "trainings": grown.trainings}
        if len(every) > 1:
            metrics["first_step_accuracy"] = accuracies[1]
        if self.noise:
            metrics["wrong_labels_learned"] = bench.wrong_labels_learned(grown.networks[-1])
        return Outcome(metrics, {"accuracy_by_generation": accuracies}, pictures=grown.pictures)

    def bench(self, seed: int, noise: float) -> Bench:
        """The testbed's samples, the training ones drawn by seed, with a share ``noise`` of wrong labels."""
        whole = self.bed.splits(seed)
        count = min(self.train_samples, 160 if self.size == "smoke" else len(whole.train))
        drawn = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(seed))[:count]
        train = whole.train.subset(drawn)
        validation = whole.validation.subset(range(min(self.validation_samples, len(whole.validation))))
        wrong, wrong_held_out = (
            self._mislabelled(train, noise, 2 * seed),
            self._mislabelled(validation, noise, 2 * seed + 1),
        )
        return Bench(seed, wrong, wrong_held_out, whole.test, train, validation, self.network, self.recipe_now)

    def _mislabelled(self, split: Split, noise: float, seed: int) -> Split:
        wrong: Tensor = flip_labels(split.labels, noise, self.bed.num_classes, seed=seed)
        return replace(split, target=wrong)

    @property
    def recipe_now(self) -> Recipe:
        """The recipe at this size."""
        return replace(self.recipe, epochs=2, generations=3) if self.size == "smoke" else self.recipe

    @property
    def bed(self) -> Any:
        """The testbed, loaded once per process."""
        if not hasattr(self, "_bed"):
            self._bed = load(self.testbed, "smoke" if self.size == "smoke" else "full")
        return self._bed


# Half a point is what the sheet allows the estimate to miss the best of the grid by.
NEAR = 0.005
ABSTRACT, SHEET, CONTROL = "[paper]", "[ours] the sheet's expectation", "[ours] control"


def claim(
    text: str, arm: str, over: str, margin: float = 0.0, source: str = ABSTRACT, metric: str = "accuracy"
) -> Claim:
    """A comparison where more is better, unless it is of the spread."""
    return Claim(text, arm, over, metric, margin, "lower" if metric == "spread" else "higher", source)


NOISE_CLAIMS = (
    claim("Under wrong labels, alpha* gains a point over no distillation", "star", "none", 0.01, SHEET),
    claim("Under wrong labels, half the truth gains a point over no distillation", "alpha-0.5", "none", 0.01, SHEET),
    *(
        claim(f"alpha* is within half a point of a chain with the fixed alpha {fixed}", "star", f"alpha-{fixed}", -NEAR)
        for fixed in ("0", "0.25", "0.5", "0.75")
    ),
    claim("alpha* beats stopping early", "star", "early", source=SHEET),
    claim("alpha* beats a stronger penalty", "star", "tuned", source=SHEET),
    claim("Half the truth beats pure self-distillation", "alpha-0.5", "alpha-0"),
    claim("Three quarters of the truth dampen: accuracy moves less over the generations than without any", "alpha-0.75",
          "alpha-0", metric="spread"),
    claim("It is the teacher, not the retraining", "alpha-0.5", "again", source=CONTROL),
    claim("It is the teacher's view of the very sample", "alpha-0.5", "shuffled", source=CONTROL),
)  # fmt: skip


class DigitsNoise(NoisyLabels):
    """Handwritten digits of 8 x 8 pixels, 30% of the labels wrong, an MLP 64-128-10."""

    title = "Digits with 30% wrong labels"
    testbed = "digits:plain"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}
    arms = {**NONE, **RIVALS, **CHAIN, **CLEAN_STAR, **GRID, **CONTROLS}
    claims = (
        *NOISE_CLAIMS,
        Claim("After one step, alpha* with two networks is within half a point of the best of eleven", "star", "grid",
              "first_step_accuracy", -NEAR, source="[paper] estimate for networks"),
        claim("Wrong labels among the validation samples cost the estimate no more than half a point", "star",
              "star-clean", -NEAR, "[ours] ablation"),
    )  # fmt: skip


class DigitsClean(NoisyLabels):
    """The same with right labels: the control in which there is nothing to dampen."""

    title = "Digits with right labels"
    testbed = "digits:plain"
    noise = 0.0
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}
    arms = {
        **NONE,
        "early": RIVALS["early"],
        **{name: CHAIN[name] for name in ("alpha-0", "alpha-0.5", "star")},
        "again": CONTROLS["again"],
    }
    claims = (
        claim("On right labels, alpha* costs no more than half a point", "star", "none", -NEAR, SHEET),
        Claim("On right labels there is less than a point to gain", "none", "star", "accuracy", -0.01, source=SHEET),
        claim("On right labels, half the truth is level with pure self-distillation, within half a point", "alpha-0.5",
              "alpha-0", -NEAR, SHEET),
    )  # fmt: skip


class FashionNoise(NoisyLabels):
    """Clothing at 14 x 14 pixels, 2,000 images, 30% of the labels wrong, a CNN of 29 thousand weights."""

    title = "Fashion-MNIST with 30% wrong labels"
    testbed = "fashion_mnist:plain"
    train_samples = 2000
    validation_samples = 500
    recipe = Recipe(epochs=20, batch_size=64, learning_rate=3e-3, schedule="cosine")
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}
    arms = {**NONE, **RIVALS, **CHAIN, **CONTROLS}
    claims = NOISE_CLAIMS

    def network(self) -> nn.Module:
        """Every other pixel's mean, then three stages."""
        return nn.Sequential(nn.AvgPool2d(2), SmallCNN((16, 32, 80), 10, size=14))
