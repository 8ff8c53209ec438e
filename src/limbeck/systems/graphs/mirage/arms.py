"""The arms of the experiments: all graphs, some of them, and what Mirage makes of them; and what a set's sums hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.condensation import DistilledSet, herding_order, k_center_order, random_order, select
from limbeck.condensation.selection import Order
from limbeck.data.computation_trees import tree_histograms
from limbeck.data.graphs import Graph, graphs_of
from limbeck.data.split import Split
from limbeck.experiment import Arm
from limbeck.experiment.condensation import Task, packed
from limbeck.testbeds.tu_graphs import TUGraphs

from .method import Mirage


def everything(task: Task) -> Split:
    """All training graphs."""
    return task.train


def coreset(order: Order, task: Task) -> DistilledSet:
    """Real graphs within the budget, ranked by their Weisfeiler-Leman histograms."""
    features = tree_histograms(graphs_of(task.train), task.bed.plan.layers, least_graphs=2)
    features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-9)

    def size(rows: Sequence[int]) -> int:
        return packed(task.train.subset(rows)).bytes

    chosen = select(
        order, features, task.train.labels, budget=task.budget, size=size, every_class=False, seed=task.seed
    )
    return packed(task.train.subset(chosen))


def one_each(task: Task) -> DistilledSet:
    """A random real graph of every class, whatever it weighs."""
    labels = task.train.labels
    return packed(task.train.subset(select(random_order, labels[:, None].float(), labels, per_class=1, seed=task.seed)))


def mirage(task: Task, *, shuffled: bool = False, deeper: int = 0, times: int = 1, **options: Any) -> DistilledSet:
    """The method at the testbed's depth, or ``deeper``, at so many ``times`` the bytes; ``shuffled`` mines graphs under
    labels that are not theirs."""
    labels = task.train.labels
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(task.seed))]
    hops = task.bed.plan.layers + deeper
    return Mirage(hops, budget=times * task.budget, **options).fit_transform(graphs_of(task.train), labels)


def mined(**options: Any) -> Callable[[Task], DistilledSet]:
    """An arm's setting."""
    return partial(mirage, **options)


def real(regime: str) -> dict[str, Arm]:
    """Arms of real graphs; all of them take longer to learn than a few."""
    longer = {"longer": TUGraphs.regimes[regime].longer}
    return {
        "full": Arm(everything, f"all training graphs, {longer['longer']} times the steps", "none", longer),
        "random": Arm(partial(coreset, random_order), "random real graphs, as many bytes", "rival"),
        "herding": Arm(partial(coreset, herding_order), "herding on WL histograms, as many bytes", "rival"),
        "k-center": Arm(partial(coreset, k_center_order), "k-center on WL histograms, as many bytes", "rival"),
    }


def pooled_nodes(graphs: Sequence[Graph]) -> Tensor:
    """How many nodes each graph's sum has."""
    sums = [float(len(one) if one.pool is None else one.pool.sum()) for one in graphs]
    return torch.tensor(sums, dtype=torch.float64)


def class_means(values: Tensor, target: Tensor, weight: Tensor) -> dict[int, float]:
    """Class -> weighted mean of its values; without classes that have no weight."""
    found = {}
    for label in target.unique().tolist():
        own = weight[target == label]
        if bool(own.sum() > 0):
            found[label] = float((values[target == label] * own).sum() / own.sum())
    return found
