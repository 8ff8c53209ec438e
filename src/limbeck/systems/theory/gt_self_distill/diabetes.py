"""The kernel track on real data: does a chain of ridge fits do what a tuned ridge does not?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes

from limbeck.experiment import Arm, Claim, Exact, Experiment, Outcome
from limbeck.testbeds.base import Check, Gate
from limbeck.testbeds.images import tensor_hash

from .kernel import Array, KernelSelfDistiller
from .method import OPTIMAL

GENERATIONS = 6
SMALL_RIDGE = 0.1
RIDGES = np.logspace(-3, 2, 26)
ALPHAS = np.linspace(0.0, 1.0, 101)
WORTH = 0.01  # of the target's variance: two hundredths of the error that is left

Part = tuple[Array, Array]


@cache
def _diabetes() -> Part:
    inputs, target = load_diabetes(return_X_y=True, scaled=False)
    return inputs, target


def parts(seed: int) -> tuple[Part, Part, Part]:
    """60/20/20 of the 442 patients, all standardised by the training part."""
    inputs, target = _diabetes()
    order = np.random.default_rng([seed, 442]).permutation(len(target))
    train, validation, test = np.split(order, [int(0.6 * len(order)), int(0.8 * len(order))])
    inputs = (inputs - inputs[train].mean(axis=0)) / inputs[train].std(axis=0)
    target = (target - target[train].mean()) / target[train].std()
    return (inputs[train], target[train]), (inputs[validation], target[validation]), (inputs[test], target[test])


def error(predicted: Array, target: Array) -> float:
    """Mean squared error, in variances of the training target."""
    return float(np.mean((predicted - target) ** 2))


def plain(ridge: float, train: Part) -> KernelSelfDistiller:
    """One fit, without distillation."""
    return KernelSelfDistiller(1.0, ridge=ridge, generations=1, gamma=0.1).fit(*train)


def tuned_ridge(train: Part, validation: Part) -> float:
    """The ridge of 26 that is best on validation samples."""
    return float(min(RIDGES, key=lambda ridge: error(plain(ridge, train).predict(validation[0]), validation[1])))


Alphas = Callable[[int], Any]


def always(alpha: float | str) -> Alphas:
    """The same weight with every seed."""
    return lambda seed: alpha


def drawn(seed: int) -> list[float]:
    """A weight drawn anew for every generation."""
    return list(np.random.default_rng([seed, 5]).uniform(size=GENERATIONS - 1))


def direct_on_patients() -> float:
    """Largest difference between the direct form and the iteration over ten generations and five splits."""
    worst = 0.0
    for seed in range(5):
        model = KernelSelfDistiller(0.35, ridge=SMALL_RIDGE, generations=10, gamma=0.1).fit(*parts(seed)[0])
        worst = max(worst, *(float(np.abs(model.direct(int(g.number)).fitted - g.fitted).max()) for g in model.chain_))
    return worst


def missed_by_formula() -> float:
    """How far alpha* stays behind the best of 101 alphas on validation samples: worst of 20 splits, five steps each."""
    worst = 0.0
    for seed in range(20):
        train, validation, _ = parts(seed)
        model = KernelSelfDistiller(OPTIMAL, ridge=SMALL_RIDGE, generations=1, gamma=0.1).fit(*train, validation)
        for _ in range(GENERATIONS - 1):
            best = model.best_alpha(*validation).alpha
            reached, *grid = model.sweep(*validation, [best, *ALPHAS])
            worst = max(worst, reached - min(grid))
            model.step()
    return worst


def chosen_on_training() -> float:
    """How far below 1 the formula's alpha falls when it is given the training samples: worst of 20 splits."""
    lowest = 1.0
    for seed in range(20):
        train, _, _ = parts(seed)
        model = KernelSelfDistiller(0.0, ridge=SMALL_RIDGE, generations=1, gamma=0.1).fit(*train)
        for _ in range(GENERATIONS - 1):
            lowest = min(lowest, model.best_alpha(*train).alpha)
            model.step()
    return 1.0 - lowest


def lower(
    text: str, arm: str, over: str, margin: float = 0.0, *, metric: str = "mse", source: str = "[paper]"
) -> Claim:
    """A comparison on an error."""
    return Claim(text, arm, over, metric, margin=margin, better="lower", source=source)


SHEET, CONTROL, PITFALL = "[ours] the sheet's expectation", "[ours] control", "[ours] pitfall"
CLAIMS = (
    lower("From a ridge that is far too small, alpha* beats pure self-distillation", "star", "alpha-0", source=SHEET),
    lower("From a tuned ridge, alpha* beats pure self-distillation", "tuned-star", "tuned-alpha-0", source=SHEET),
    lower("With a ridge that is far too small, self-distillation with alpha* gains", "star", "none"),
    lower("alpha* is level with a tuned ridge, within 0.01", "star", "tuned", -WORTH, source=SHEET),
    lower("From a tuned ridge, alpha* still gains", "tuned-star", "tuned", source=SHEET),
    lower("A tuned limit is level with a tuned ridge, within 0.01", "limit-tuned", "tuned", -WORTH),
    lower("alpha* beats weights drawn at random", "star", "random", source=CONTROL),
    lower("With half the truth the error changes less over the generations", "alpha-0.5", "alpha-0", metric="spread"),
    Exact("Any generation is computable directly, on real data", direct_on_patients, 1e-10, "[paper] theorem"),
    Exact("alpha* is never worse on validation than any alpha of 101", missed_by_formula, 1e-12, "[paper]"),
    Exact("Chosen on the training samples, alpha is always 1", chosen_on_training, 1e-9, PITFALL),
)


TUNED, LIMIT = {"ridge": "tuned"}, {"limit": True}


class Diabetes(Experiment):
    """442 patients, ten measurements, one number to predict: 20 splits.

    An arm's setting gives the weights of the truth for a seed; options: ``ridge`` ``tuned`` instead of one that is
    far too small, ``limit`` for infinitely many generations instead of six.
    """

    title = "Regression on 442 patients, kernel ridge"
    testbed = "diabetes (scikit-learn)"
    metric = "mse"
    seeds = {"smoke": (0, 1), "full": tuple(range(20))}
    arms = {
        "none": Arm(always(1.0), "a single ridge fit, lambda 0.1: far too small", "none"),
        "tuned": Arm(always(1.0), "a single ridge fit, lambda tuned on validation samples", "rival", TUNED),
        "alpha-0": Arm(always(0.0), "six generations without the truth", "rival"),
        "alpha-0.5": Arm(always(0.5), "six generations with half the truth", "method"),
        "star": Arm(always(OPTIMAL), "six generations, each with alpha*", "method"),
        "limit-0.5": Arm(always(0.5), "infinitely many generations with half the truth", "ablation", LIMIT),
        "limit-tuned": Arm(always(OPTIMAL), "infinitely many, alpha tuned on validation samples", "ablation", LIMIT),
        "random": Arm(drawn, "six generations with weights drawn at random", "control"),
        "tuned-alpha-0": Arm(always(0.0), "six generations without the truth from the tuned lambda", "ablation", TUNED),
        "tuned-star": Arm(always(OPTIMAL), "six generations with alpha*, from the tuned lambda", "ablation", TUNED),
    }

    claims = CLAIMS

    def prepare(self) -> dict[str, Any]:
        found = []
        for train, validation, _ in map(parts, range(100, 105)):
            fits = (plain(ridge, train) for ridge in (SMALL_RIDGE, tuned_ridge(train, validation)))
            found.append([error(fit.predict(validation[0]), validation[1]) for fit in fits])
        small, tuned = np.mean(found, axis=0).tolist()
        gate = Gate(
            (Check("tuned_error", tuned, 0.2, 0.9), Check("lost_by_the_small_ridge", small - tuned, 0.05, 100.0))
        )
        inputs, target = (torch.from_numpy(values) for values in _diabetes())
        return {"gate": gate.as_dict(), "data": {"sklearn-diabetes": tensor_hash(inputs, target)}, "reference": {}}

    def run(self, arm: str, seed: int) -> Outcome:
        train, validation, test = parts(seed)
        chosen = self.arms[arm]
        ridge = tuned_ridge(train, validation) if chosen.options.get("ridge") == "tuned" else SMALL_RIDGE
        alpha = chosen.setting(seed)
        if chosen.options.get("limit"):
            return self._limit(plain(ridge, train), alpha, validation, test)
        model = KernelSelfDistiller(alpha, ridge=ridge, generations=GENERATIONS, gamma=0.1).fit(*train, validation)
        errors = [error(model.predict(test[0], one), test[1]) for one in model.chain_]
        weights = [one.weight.alpha for one in model.chain_[1:]]
        metrics = {"mse": errors[-1], "spread": float(np.ptp(errors)), "alpha": float(np.mean(weights)), "ridge": ridge}
        return Outcome(metrics, {"mse_by_generation": errors})

    def _limit(self, model: KernelSelfDistiller, alpha: Any, validation: Part, test: Part) -> Outcome:
        if alpha == OPTIMAL:
            alpha = min(ALPHAS, key=lambda one: error(model.predict(validation[0], model.limit(one)), validation[1]))
        reached = error(model.predict(test[0], model.limit(alpha)), test[1])
        first = error(model.predict(test[0], 1), test[1])
        return Outcome({"mse": reached, "spread": abs(first - reached), "alpha": alpha, "ridge": model.ridge})
