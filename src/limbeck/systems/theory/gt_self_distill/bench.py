"""The network track's bench: how one network is made, and what every arm does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Generations, OptimizerSettings
from limbeck.measure import logits_of
from limbeck.objectives import with_weight_norm
from limbeck.sources import Source, Table

from .drawings import draw_sweep
from .method import OPTIMAL, PENALTY, NetworkSelfDistiller, Weight, mixture, optimal_alpha, probabilities

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
PENALTIES = (PENALTY, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Recipe:
    """How every network of an experiment is trained: Adam, published at a constant rate of 1e-3 on batches of 16."""

    epochs: int
    batch_size: int
    learning_rate: float
    generations: int = 4
    schedule: str = "constant"


@dataclass
class Bench:
    """One seed of one experiment: its samples and how a chain on them begins."""

    seed: int
    train: Split
    validation: Split
    test: Split
    clean_train: Split
    clean_validation: Split
    network: Callable[[], nn.Module]
    recipe: Recipe
    first: list[nn.Module] = field(default_factory=list)

    def chain(self, *, ancestors: Sequence[nn.Module] | None = None, **options: Any) -> Generations:
        """A chain that goes on from the plain network, which is the same for every arm of a seed."""
        return Generations(
            lambda number: self.network(),
            TensorLoader(self.train, self.recipe.batch_size, seed=self.seed),
            epochs=self.recipe.epochs,
            optimizer=OptimizerSettings("adam", self.recipe.learning_rate, 0.0, self.recipe.schedule),
            cached=True,
            forward=with_weight_norm,
            seed=self.seed,
            accelerator="cpu",
            ancestors=self.plain() if ancestors is None else ancestors,
            **options,
        )

    def plain(self) -> list[nn.Module]:
        """The first generation, trained once."""
        if not self.first:
            chain = self.chain(ancestors=())
            self.first = [chain.grow(mixture(1.0))]
        return self.first

    def error(self, network: nn.Module) -> float:
        """Squared error of the probabilities on validation samples: what every arm selects by."""
        truth, said = probabilities(network, self.validation.batches(500))
        return float((said - truth).square().mean())

    def wrong_labels_learned(self, network: nn.Module) -> float:
        """Share of the wrong training labels that the network gives back."""
        wrong = self.train.labels != self.clean_train.labels
        said = logits_of(network, self.train).argmax(dim=-1)
        return float((said == self.train.labels)[wrong].double().mean())


@dataclass(frozen=True)
class Grown:
    """An arm's networks, the last of which counts, with what else there is to say."""

    networks: Sequence[nn.Module]
    trainings: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)


def plain(bench: Bench) -> Grown:
    """One network on the labels."""
    return Grown(bench.plain(), 1)


def early(bench: Bench) -> Grown:
    """The epoch of plain training that is best on validation samples."""

    def validate(distiller: nn.Module) -> dict[str, float]:
        student: Any = getattr(distiller, "student", distiller)
        return {"error": bench.error(student)}

    chain = bench.chain(ancestors=(), validate=validate, select="error", select_higher=False)
    network = chain.grow(mixture(1.0))
    return Grown([network], 1, {"best_epoch": float(chain.histories["generation-0"].best_epoch or 0)})


def tuned(bench: Bench) -> Grown:
    """Plain training with the penalty of four that is best on validation samples: stronger regularisation, asked for
    directly."""
    chain = bench.chain(ancestors=())
    candidates = [(PENALTY, bench.plain()[0])]
    candidates += [(one, chain.attempt(mixture(1.0, one), f"penalty-{one:g}")) for one in PENALTIES[1:]]
    penalty, network = min(candidates, key=lambda pair: bench.error(pair[1]))
    return Grown([network], len(candidates), {"penalty": penalty})


def distilled(alpha: float | str, *, clean: bool = False, shuffled: bool = False) -> Callable[[Bench], Grown]:
    """The chain with a fixed or estimated weight of the truth."""

    def grow(bench: Bench) -> Grown:
        chain = bench.chain(teacher=partial(of_other_samples, bench) if shuffled else None)
        held_out = bench.clean_validation if clean else bench.validation
        method = NetworkSelfDistiller(chain, alpha, validation=list(held_out.batches(500)))
        method.fit(bench.recipe.generations)
        metrics = {f"alpha_{step}": weight.unclipped for step, weight in enumerate(method.weights, start=1)}
        return Grown(chain.networks, 1 + len(chain.histories), metrics if alpha == OPTIMAL else {})

    return grow


def of_other_samples(bench: Bench, ancestors: Sequence[nn.Module]) -> Source:
    """A teacher that says of every sample what it thinks of another one."""
    order = torch.randperm(len(bench.train), generator=torch.Generator().manual_seed(bench.seed))
    return Table(bench.train.id, {"logits": logits_of(ancestors[-1], bench.train)[order]})


def swept(bench: Bench) -> Grown:
    """One step with the best of eleven weights on validation samples, a network each."""
    chain = bench.chain()
    trained = {alpha: chain.attempt(mixture(alpha), f"alpha-{alpha:g}") for alpha in ALPHAS[:-1]}
    trained[1.0] = chain.networks[0]
    errors = [bench.error(trained[alpha]) for alpha in ALPHAS]
    best = ALPHAS[int(np.argmin(errors))]
    truth, hard = probabilities(trained[1.0], bench.validation.batches(500))
    soft = probabilities(trained[0.0], bench.validation.batches(500))[1]
    mixed = [float((alpha * hard + (1 - alpha) * soft - truth).square().mean()) for alpha in ALPHAS]
    weight: Weight = optimal_alpha(truth, hard, soft)
    pictures = {"Validation error by alpha, after one step": draw_sweep(ALPHAS, errors, mixed, weight)}
    return Grown([trained[1.0], trained[best]], len(trained), {"alpha_1": best}, pictures if bench.seed == 0 else {})
