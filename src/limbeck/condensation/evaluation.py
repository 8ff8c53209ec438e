"""What a distilled set is worth: fresh networks are trained on it alone and tested on real samples.

The networks are told nothing of how the set was made, and several kinds of them are trained, since a set that only
suits the network it was made with has distilled that network and not the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.condensation.sampling import WeightedLoader
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.data.views import epoch_seed
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.measure import auc, classification, logits_of
from limbeck.objectives import CrossEntropy, Objective

Network = Callable[[], nn.Module]
Collate = Callable[[list[Any]], Any]
_BATCHES_PER_EPOCH = 50


@dataclass(frozen=True)
class Training:
    """How every network is trained, on a distilled set and on all data alike.

    Attributes:
        steps, batch_size: length, the same for all, so that arms differ in data and not in updates. A set of fewer
            samples than a batch, all drawn alike, is one batch.
        optimizer: settings of the optimiser.
        objective: makes the loss; cross-entropy by default, for classes and for soft labels that are probabilities.
        transform: of batches, such as an augmentation; see ``TensorLoader``.
        collate: makes a batch of samples that are no tensors (``data.graphs.collate``).
    """

    steps: int = 500
    batch_size: int = 32
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    objective: Callable[[], Objective] = CrossEntropy
    transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    collate: Collate | None = None


def train_fresh(
    network: Network,
    data: DistilledSet | Split,
    training: Training,
    *,
    weighted: bool = True,
    seed: int = 0,
    validation: Split | None = None,
) -> nn.Module:
    """A network made and trained with ``seed`` on ``data``, in eval mode; its last step counts.

    Args:
        data: a distilled set, or real samples.
        weighted: draw the samples of a set by their weights; all alike otherwise.
        validation: held-out samples, of which none is a test sample, that choose the best epoch instead of the last.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    distiller = Distiller(model, training.objective(), optimizer=training.optimizer)
    loader = _loader(data, training, weighted, seed)
    options: dict[str, Any] = {}
    if validation is not None:
        held_out = validation

        def accuracy(trained: Any) -> dict[str, float]:
            logits = logits_of(trained.student, held_out, collate=training.collate)
            return {"accuracy": float((logits.argmax(dim=-1) == held_out.labels).double().mean())}

        options = {"validate": accuracy, "select": "accuracy"}
    fit(distiller, loader, steps=training.steps, seed=seed, accelerator="cpu", **options)
    return distiller.finish().eval()


def evaluate(
    networks: Mapping[str, Network],
    data: DistilledSet | Split,
    test: Split,
    training: Training,
    *,
    weighted: bool = True,
    seed: int = 0,
    repeats: Mapping[str, int] | None = None,
    validation: Split | None = None,
) -> dict[str, dict[str, float]]:
    """Network -> metrics on ``test`` (those of classification, and ``auc``) after training on ``data``.

    Args:
        repeats: how many fresh networks of a kind, each with its own seed, are averaged; 1 by default.
        weighted, validation: see :func:`train_fresh`.

    Outputs that are not finite make every metric of their network NaN: it diverged.
    """
    found = {}
    for name, network in networks.items():
        each = []
        for number in range((repeats or {}).get(name, 1)):
            own = seed if number == 0 else epoch_seed(seed, number) % 2**32
            model = train_fresh(network, data, training, weighted=weighted, seed=own, validation=validation)
            each.append(_metrics(logits_of(model, test, collate=training.collate), test.labels))
        found[name] = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
    return found


def _metrics(logits: Tensor, target: Tensor) -> dict[str, float]:
    if bool(torch.isfinite(logits).all()):
        return classification(logits, target) | {"auc": auc(logits, target)}
    return dict.fromkeys(("accuracy", "macro_f1", "nll", "ece", "brier", "auc"), float("nan"))


def averaged(by_network: Mapping[str, Mapping[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    """The mean of each metric over the networks, and every network's own as ``METRIC_NETWORK``."""
    means = {name: sum(one[name] for one in by_network.values()) / len(by_network) for name in names}
    return means | {f"{name}_{network}": one[name] for name in names for network, one in by_network.items()}


def _loader(data: DistilledSet | Split, training: Training, weighted: bool, seed: int) -> WeightedLoader:
    if training.steps < 1 or training.batch_size < 1:
        raise UserError("training", f"steps {training.steps}, batch_size {training.batch_size}", "1 or more")
    split = data.split() if isinstance(data, DistilledSet) else data
    weight = data.sample_weight if isinstance(data, DistilledSet) and weighted else None
    size = training.batch_size if weight is not None else min(training.batch_size, len(split))
    # A handful of samples needs no end of an epoch after every batch.
    draws = max(len(split), min(_BATCHES_PER_EPOCH, training.steps) * size)
    return WeightedLoader(
        split, size, weight=weight, draws=draws, seed=seed, transform=training.transform, collate=training.collate
    )
