"""The system's pictures: fits of every generation, what is left of each eigendirection, the sweep over alpha."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.experiment.line_plots import lines

from .kernel import Array, Sparsification
from .method import Weight


def draw_fits(inputs: Array, values: Array, grid: Array, truth: Array, fits: Sequence[Array]) -> str:
    """Every generation's function over the points it was fitted to; the last of ``fits`` is the limit."""
    series = {f"generation {number}": (grid, fit) for number, fit in enumerate(fits[:-1], start=1)}
    return lines(
        series,
        dashed={"limit": (grid, fits[-1]), "truth": (grid, truth)},
        points={"training": (inputs, values)},
        x_label="x",
        y_label="f(x)",
    )


def draw_diagonals(found: Sparsification) -> str:
    """The diagonal of B against the rank of its eigenvalue, one line a generation."""
    ranks = np.arange(1, len(found.eigenvalues) + 1)
    series = {f"generation {number}": (ranks, row) for number, row in enumerate(found.diagonal, start=1)}
    return lines(series, dashed={"limit": (ranks, found.limit)}, x_label="eigendirection, strongest first", y_label="B")


def draw_sweep(alphas: Sequence[float], trained: Sequence[float], mixed: Sequence[float], best: Weight) -> str:
    """Validation error of one trained network per alpha, beside what the mix of two predictions says it is."""
    star = (np.array([best.alpha, best.alpha]), np.array([min(*trained, *mixed), max(*trained, *mixed)]))
    return lines(
        {"mix of two networks": (np.asarray(alphas), np.asarray(mixed))},
        dashed={"alpha*": star},
        points={"one network for each alpha": (np.asarray(alphas), np.asarray(trained))},
        x_label="alpha, weight of the truth",
        y_label="validation error",
    )
