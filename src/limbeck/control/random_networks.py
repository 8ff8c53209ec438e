"""Distillation of random targets as an intrinsic reward: RND, DRND and coin flips; RDD is built of the same parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.control.intrinsic import IntrinsicReward, checked
from limbeck.control.learning import Learning, Online
from limbeck.control.networks import orthogonal, perceptron, seeded
from limbeck.control.normalise import RunningMoments
from limbeck.control.targets import CoinTarget, EnsembleTarget, FixedTarget, PriorPredictor, Target
from limbeck.errors import UserError

READOUTS = ("mean", "sample", "normalised", "root", "drnd")
#: A read-out of one's own: (prediction, target, states) -> [B].
Readout = Callable[[Tensor, Target, Tensor], Tensor]


class RandomDistillation(IntrinsicReward):
    """A predictor that learns samples of a random target; how far it is from the target's mean says how new a state is.

    Every visit draws a fresh sample and the predictor takes part in one fit to it. With f the prediction, mu and v the
    target's mean and variance, and means over the d dimensions:

    | read-out | bonus | use |
    |---|---|---|
    | ``mean`` | mean (f - mu)^2 | RND, RDD (default) |
    | ``normalised`` | mean (f - mu)^2 / v | an estimate of 1/n, whatever sigma |
    | ``root`` | its square root | n^-1/2, as coin flips and count bonuses have it |
    | ``drnd`` | 0.9 **sum** (f - mu)^2 + 0.1 mean sqrt of the clipped abs(f^2 - mu^2) / v | DRND |
    | ``sample`` | mean (f - sample)^2 | **wrong** for noisy targets: never falls below v. Kept as a control |

    DRND's first term is a sum over dimensions and its second a mean, as in its authors' code: the second matters only
    where the first has nearly gone.

    ``sample`` draws, so it is the one read-out whose bonus is not the same twice.

    Args:
        predictor: trained, states to ``[B, target.size]``.
        target: frozen distribution over the same vectors.
        learning: how the predictor is fitted; published: :class:`~limbeck.control.learning.Online`.
        readout: a name of the table, or a function of (prediction, target, states).
        moments: whitens states before both networks see them; None leaves them as they are.
        share: chance of every visit to be learnt from; RND takes 0.25 where many environments run side by side.
        seed: of samples and of ``share``.
    """

    def __init__(
        self,
        predictor: nn.Module,
        target: Target,
        *,
        learning: Learning | None = None,
        readout: str | Readout = "mean",
        moments: RunningMoments | None = None,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        if isinstance(readout, str) and readout not in READOUTS:
            raise UserError("readout", readout, READOUTS)
        if not 0 < share <= 1:
            raise UserError("share", share, "above 0, at most 1")
        self.predictor, self.target, self.readout, self.moments, self.share = predictor, target, readout, moments, share
        self.learning = learning or Online()
        self.learning.attach(predictor)
        self.generator = torch.Generator().manual_seed(seed)
        self._device = torch.device("cpu")

    def observe(self, states: Tensor) -> None:
        if self.moments is not None:
            self.moments.update(checked(states).to(self._device))

    def update(self, states: Tensor) -> dict[str, float]:
        seen = self._seen(states)
        if self.share < 1:
            seen = seen[torch.rand(len(seen), generator=self.generator).to(self._device) < self.share]
            if not len(seen):
                return {}
        with torch.no_grad():
            samples = self.target.sample(seen, self.generator)
        return {"loss": self.learning.step(seen, samples)}

    @torch.no_grad()
    def bonus(self, states: Tensor) -> Tensor:
        seen = self._seen(states)
        prediction: Tensor = self.predictor(seen)
        if callable(self.readout):
            return self.readout(prediction, self.target, seen)
        if self.readout == "sample":
            return (prediction - self.target.sample(seen, self.generator)).square().mean(dim=-1)
        errors: Tensor = (prediction - self.target.mean(seen)).square()
        if self.readout == "mean":
            return errors.mean(dim=-1)
        variance = self.target.variance(seen).clamp_min(1e-12)
        if self.readout == "drnd":
            return 0.9 * errors.sum(dim=-1) + 0.1 * self._second_moment(prediction, seen, variance)
        scaled: Tensor = (errors / variance).mean(dim=-1)
        return scaled if self.readout == "normalised" else scaled.sqrt()

    def _second_moment(self, prediction: Tensor, seen: Tensor, variance: Tensor) -> Tensor:
        share = (prediction.square() - self.target.mean(seen).square()).abs() / variance
        return share.clamp(1e-3, 1.0).sqrt().mean(dim=-1)

    def _seen(self, states: Tensor) -> Tensor:
        states = checked(states).detach().float().to(self._device)
        return states if self.moments is None else self.moments(states)

    def to(self, device: torch.device | str) -> RandomDistillation:
        """Move both networks; call it before the first update, as optimisers keep what they have."""
        self._device = torch.device(device)
        self.predictor.to(device)
        self.target.to(device)
        if self.moments is not None:
            self.moments.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "predictor": {name: value.clone() for name, value in self.predictor.state_dict().items()},
            "target": {name: value.clone() for name, value in self.target.state_dict().items()},
            "learning": self.learning.state_dict(),
            "moments": None if self.moments is None else self.moments.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.predictor.load_state_dict(state["predictor"])
        self.target.load_state_dict(state["target"])
        self.learning.load_state_dict(state["learning"])
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
        self.generator.set_state(state["generator"])


def rnd(
    shape: Sequence[int],
    *,
    size: int = 64,
    network: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    **options: Any,
) -> RandomDistillation:
    """Random network distillation (Burda et al., arXiv:1810.12894): predictor and target of one architecture.

    Args:
        shape: of one state.
        size: numbers that are predicted.
        network: makes a network from states to ``[B, size]``; two hidden layers of 64 by default.
        options: of :class:`RandomDistillation`.
    """
    make = maker(shape, size, network)
    return RandomDistillation(
        seeded(make, 2 * seed), FixedTarget(seeded(make, 2 * seed + 1), size), seed=seed, **options
    )


def drnd(
    shape: Sequence[int],
    *,
    size: int = 64,
    members: int = 10,
    network: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    **options: Any,
) -> RandomDistillation:
    """Distributional RND (Yang et al., arXiv:2401.09750): one of ``members`` random targets per visit."""
    make = maker(shape, size, network)
    targets = [seeded(make, 1000 * seed + 1 + member) for member in range(members)]
    options = {"readout": "drnd"} | options
    return RandomDistillation(seeded(make, 1000 * seed), EnsembleTarget(targets, size), seed=seed, **options)


def coin_flips(
    shape: Sequence[int],
    *,
    size: int = 64,
    network: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    **options: Any,
) -> RandomDistillation:
    """Coin-flip network (Lobel et al., arXiv:2306.03186): regression on fresh coins, with a frozen random prior."""
    make = maker(shape, size, network)
    predictor = PriorPredictor(seeded(make, 2 * seed), seeded(make, 2 * seed + 1))
    options = {"readout": "root"} | options
    return RandomDistillation(predictor, CoinTarget(size), seed=seed, **options)


def maker(shape: Sequence[int], size: int, network: Callable[[], nn.Module] | None) -> Callable[[], nn.Module]:
    """``network``, or two hidden layers of 64 on flattened states.

    Orthogonal weights of gain sqrt(2) and no biases, as RND's authors have them: biases would be common to all states,
    and a predictor that learns those has learnt nothing of the state.
    """
    return network or (lambda: orthogonal(perceptron(math.prod(shape), (64, 64), size)))
