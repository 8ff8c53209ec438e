"""RDD, random distribution distillation: an exploration bonus that falls as a visit count does (arXiv:2505.11044).

RND pays the error of a predictor f against a frozen random network mu. How fast that error falls is the optimiser's
affair, so two states that were visited equally often pay differently. RDD learns from a noisy target instead:

    at every visit of s      t ~ N(mu(s), sigma^2 I),  fresh           one step on |f(s) - t|^2
    bonus                    b(s) = (1/d) |f(s) - mu(s)|^2             against the mean, not against the sample
    reward                   r = r_extrinsic + c b(s'),  c = 1

The best fit to n samples is their mean, whose squared distance to mu(s) is sigma^2 / n per dimension in expectation:

    z_n(s) = |f(s) - mu(s)|^2 / (d sigma^2),    E z_n = 1 / n,    Var z_n = 2 / (d n^2)

so b / sigma^2 estimates 1/n, as far as f averages its samples. What f lacks of that average adds to it:

    |f - mu|^2 <= 2 |f*_n - mu|^2 + 2 |f - f*_n|^2          pseudo-count term, discrepancy term

With sigma = 0 this is RND. With N random networks in the place of the Gaussian it is DRND, with fair coins the
coin-flip network: all are :class:`~limbeck.control.RandomDistillation` with another target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.control import PPO, ActorCritic, GaussianTarget, IntrinsicReward, PPOSettings, RandomDistillation
from limbeck.control.learning import Learning, Online
from limbeck.control.mixer import RewardMixer
from limbeck.control.networks import seeded
from limbeck.control.policies import actions_of
from limbeck.control.random_networks import Readout, maker
from limbeck.errors import UserError

#: Read-outs that follow the count, and what they follow.
PSEUDO_COUNT_POWERS = {"mean": 1.0, "normalised": 1.0, "root": 0.5}


class RDD(RandomDistillation):
    """The bonus of random distribution distillation, to be used wherever an intrinsic reward is.

    Args:
        shape: of one state.
        sigma: of the noise, one number for all states and dimensions. Of the order of what the target's mean varies
            over states: much smaller and the bonus is RND's, much larger and its noise floor hides the counts.
        centre: mean of the target's outputs. A fresh predictor answers about 0, so an unseen state pays about
            ``centre^2``.
        size: d, the numbers that are predicted.
        network: makes a network from states to ``[B, size]``: the published 64 hidden units by default,
            convolutions for images (``limbeck.control.conv_network``).
        learning: published: one Adam step of 3e-4 per batch. That forgets; see :mod:`limbeck.control.learning` for a
            falling step and for least squares over all samples, which earn the law above.
        readout: ``mean`` as published; ``normalised``, ``root``; ``sample`` is the commonest error and never decays.
        options: ``moments``, ``share``, ``seed`` of :class:`~limbeck.control.RandomDistillation`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        sigma: float = 1.0,
        centre: float = 1.0,
        size: int = 64,
        network: Callable[[], nn.Module] | None = None,
        learning: Learning | None = None,
        readout: str | Readout = "mean",
        seed: int = 0,
        **options: Any,
    ) -> None:
        make = maker(shape, size, network)
        target = GaussianTarget(seeded(make, 2 * seed + 1), size, sigma, centre)
        super().__init__(
            seeded(make, 2 * seed), target, learning=learning or Online(3e-4), readout=readout, seed=seed, **options
        )
        self.sigma = sigma

    def pseudo_count(self, states: Tensor) -> Tensor:
        """How often every state seems to have been visited, ``[B]``: ``sigma^2 / b``, or 1 over the square of roots.

        Raises:
            UserError: without noise, or with a read-out that follows no count.
        """
        power = PSEUDO_COUNT_POWERS.get(str(self.readout))
        if power is None or not self.sigma:
            raise UserError(
                "readout, sigma", (self.readout, self.sigma), "mean, normalised or root, with sigma above 0"
            )
        scale = self.sigma**2 if self.readout == "mean" else 1.0
        return (scale / self.bonus(states).clamp_min(1e-12)).pow(1 / power)


def expected_bonus(visits: Tensor, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
    """What the law says of ``mean`` bonuses after ``visits``: expectation ``sigma^2 / n``, and what one dimension adds
    to the variance, ``2 sigma^4 / n^2`` (divide by d)."""
    inverse = 1.0 / visits
    return sigma**2 * inverse, 2 * (sigma**2 * inverse) ** 2


def noise_floor(step: float, sigma: float = 1.0) -> float:
    """Bonus that a table with constant steps ``f += step (t - f)`` keeps for ever: ``step / (2 - step) sigma^2``."""
    return step / (2 - step) * sigma**2


def explorer(
    environments: Any,
    intrinsic: IntrinsicReward,
    *,
    coefficient: float = 1.0,
    mixer: RewardMixer | None = None,
    settings: PPOSettings | None = None,
    body: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    **options: Any,
) -> PPO:
    """PPO that explores by ``intrinsic``: act, pay ``r + c b(s')``, learn the visits, improve; ``.learn(steps)``.

    Args:
        environments: gymnasium vector environment.
        intrinsic: :class:`RDD`, or any other.
        coefficient: c, of the bonus in units of its running deviation.
        mixer: in its place, where two streams or other normalisation are wanted.
        body: network for images; the published perceptrons of 64 by default.
        options: ``moments``, ``states`` of :class:`~limbeck.control.PPO`.
    """
    mixer = mixer or RewardMixer(coefficient)
    shape = environments.single_observation_space.shape
    actions = actions_of(environments.single_action_space)
    network = seeded(lambda: ActorCritic(shape, actions, heads=mixer.heads, body=body), seed)
    return PPO(
        environments,
        network,
        intrinsic=intrinsic,
        mixer=mixer,
        settings=settings,
        seed=seed,
        **options,
    )


def exact_mean_bonus(visits: int, *, size: int, sigma: float, repeats: int, seed: int = 0) -> Tensor:
    """``z_n`` of the exact mean of ``visits`` samples, ``repeats`` times: the statistic that a network approaches."""
    generator = torch.Generator().manual_seed(seed)
    samples = sigma * torch.randn(repeats, visits, size, generator=generator, dtype=torch.float64)
    return samples.mean(dim=1).square().mean(dim=-1) / sigma**2
