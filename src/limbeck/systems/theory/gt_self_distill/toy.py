"""The kernel track's published toy, to the digit, and the exact statements."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.kernel_ridge import KernelRidge

from limbeck.experiment import Arm, Exact, Experiment, Outcome

from .drawings import draw_diagonals, draw_fits
from .kernel import Array, KernelSelfDistiller

README, NOTEBOOK = "[code] README", "[code] toy_example.ipynb"
GENERATIONS = 6

# The eleven noisy values of a sinusoid that the notebook takes from Mobahi et al. (2020).
POINTS = np.linspace(0.0, 1.0, 11)[:, None]
VALUES = np.array(
    [0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.6920159488889518, -0.29756145531871736,
     -0.24189291901377769, -0.7964485769175675, -0.9616480167034174, -0.49672509509916934,
     -0.3469066003991437, 0.5589512650600734]
)  # fmt: skip
GRID = np.linspace(0.0, 1.0, 101)[:, None]
TRUTH = np.sin(2 * np.pi * GRID[:, 0])
# Losses of generations 1 to 6 and of the limit, as printed.
PUBLISHED = {
    0.0: (0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505),
    0.35: (0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959),
    0.25: (0.16477, 0.15309, 0.14958, 0.14903, 0.14946, 0.15011, 0.15250),
}
ROUNDING = 5e-6


def toy(alpha: float, generations: int = GENERATIONS) -> KernelSelfDistiller:
    """The notebook's model: an RBF kernel with gamma 80, lambda 0.2."""
    return KernelSelfDistiller(alpha, ridge=0.2, generations=generations, gamma=80.0).fit(POINTS, VALUES)


def toy_losses(alpha: float) -> Array:
    """Squared error against the noiseless sinusoid, of six generations and the limit."""
    model = toy(alpha)
    predicted = [model.predict(GRID, one) for one in (*model.chain_, model.limit())]
    return np.array([np.mean((one - TRUTH) ** 2) for one in predicted])


def from_published(alpha: float, column: float) -> float:
    """Largest distance of our losses at ``alpha`` from the column that was published for ``column``."""
    return float(np.abs(toy_losses(alpha) - PUBLISHED[column]).max())


def direct_error() -> float:
    """Largest difference between the direct form of a generation and the iteration, coefficients and fits."""
    worst = 0.0
    for alpha in (0.0, 0.25, 0.35, 1.0):
        model = toy(alpha, 20)
        for one in model.chain_:
            jump = model.direct(int(one.number))
            worst = max(worst, float(np.abs(jump.fitted - one.fitted).max()))
            worst = max(worst, float(np.abs(jump.coefficients - one.coefficients).max()))
    return worst


def limit_error() -> float:
    """Distance of 200 generations from the limit, and of the limit from scikit-learn's ridge with lambda / alpha."""
    model = toy(0.35, 200)
    ridge = KernelRidge(alpha=0.2 / 0.35, kernel="rbf", gamma=80.0).fit(POINTS, VALUES).predict(GRID)
    limit = model.predict(GRID, model.limit())
    return float(max(np.abs(model.predict(GRID) - limit).max(), np.abs(ridge - limit).max()))


def nothing_left() -> float:
    """The largest prediction of the limit without any truth."""
    model = toy(0.0, 1)
    return float(np.abs(model.predict(GRID, model.limit())).max())


def fallen_ratio(alpha: float, since: str = "before") -> float:
    """By how much a ratio of neighbouring diagonals of B falls below the generation before it, or the first."""
    ratios = toy(alpha).sparsification(20).ratios
    falls = ratios[:-1] - ratios[1:] if since == "before" else ratios[:1] - ratios[1:]
    return float(max(falls.max(), 0.0))


class Toy(Experiment):
    """Eleven points, six generations, and the limit: what the authors print, and the exact statements."""

    title = "The published toy: eleven points of a sinusoid"
    testbed = "eleven points of a sinusoid"
    metric = "mse"
    seeds = {"smoke": (0,), "full": (0,)}
    arms = {
        "none": Arm(1.0, "alpha 1: the plain fit, six times over", "none"),
        "alpha-0": Arm(0.0, "pure self-distillation", "rival"),
        "alpha-0.25": Arm(0.25, "a quarter of the truth, as in the published notebook", "method"),
        "alpha-0.35": Arm(0.35, "0.35 of the truth, as in the README's table", "method"),
    }
    claims = (
        Exact("The README's column alpha = 0, to five digits", partial(from_published, 0.0, 0.0), ROUNDING, README),
        Exact("The README's second column is alpha = 0.35", partial(from_published, 0.35, 0.35), ROUNDING, README),
        Exact(
            "The README's second column is alpha = 0.25, as its head says",
            partial(from_published, 0.25, 0.35),
            ROUNDING,
            README,
        ),
        Exact("The notebook's output at alpha = 0.25", partial(from_published, 0.25, 0.25), ROUNDING, NOTEBOOK),
        Exact("Any generation is computable directly", direct_error, 1e-10, "[paper] theorem"),
        Exact("The limit is a ridge fit with lambda / alpha", limit_error, 1e-10, "[paper] theorem"),
        Exact("Without any truth the limit is zero", nothing_left, 0.0, "[paper] theorem"),
        Exact(
            "No ratio of neighbouring diagonals of B ever falls, at alpha = 0",
            partial(fallen_ratio, 0.0),
            1e-12,
            README,
        ),
        Exact(
            "No ratio of neighbouring diagonals of B ever falls, at alpha = 0.35",
            partial(fallen_ratio, 0.35),
            1e-12,
            "[paper] recalled",
        ),
        Exact(
            "No ratio of neighbouring diagonals of B falls below that of the first fit, at alpha = 0.35",
            partial(fallen_ratio, 0.35, "first"),
            1e-12,
            "[ours] what holds for every alpha",
        ),
    )

    def run(self, arm: str, seed: int) -> Outcome:
        alpha = float(self.arms[arm].setting)
        losses = toy_losses(alpha)
        model = toy(alpha)
        freedom = model.sparsification().degrees_of_freedom
        metrics = {"mse": losses[-2], "limit_mse": losses[-1], "spread": np.ptp(losses[:-1]), "freedom": freedom[-1]}
        pictures = {}
        # The two columns of the README; more would not fit the ledger.
        if alpha in (0.0, 0.35):
            fits = [model.predict(GRID, one) for one in (*model.chain_, model.limit())]
            pictures = {
                "The fits, generation by generation": draw_fits(POINTS[:, 0], VALUES, GRID[:, 0], TRUTH, fits),
                "What is left of each eigendirection (diagonal of B)": draw_diagonals(model.sparsification()),
            }
        return Outcome(metrics, {"mse_by_generation": list(losses[:-1])}, pictures=pictures)
