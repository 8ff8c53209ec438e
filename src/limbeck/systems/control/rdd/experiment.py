"""The experiments of rdd: counting visits that are known (three kinds of states), and exploring two worlds."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .counts import Coordinates, Counts, Digits
from .exploration import DeepSeaExperiment, MiniGrid

EXPERIMENTS: dict[str, type[Experiment]] = {
    "counts": Counts,
    "counts_coordinates": Coordinates,
    "counts_digits": Digits,
    "deep_sea": DeepSeaExperiment,
    "minigrid": MiniGrid,
}
