"""Random targets that predictors of exploration learn, as distributions over vectors given the state.

| target | sample | mean | a predictor's squared distance to the mean |
|---|---|---|---|
| :class:`FixedTarget` | the random network | the same | RND: falls as fast as the optimiser happens to learn |
| :class:`GaussianTarget` | mean + sigma noise | the random network | RDD: sigma^2 / n after n averaged visits |
| :class:`EnsembleTarget` | one of N random networks | their mean | DRND: their variance / n |
| :class:`CoinTarget` | fair +-1 | 0 | coin flips: 1 / n |
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import UserError


class Target(nn.Module):
    """A distribution of vectors ``[B, size]`` for states; frozen, in eval mode for good, and in every checkpoint."""

    size: int

    @abstractmethod
    def mean(self, states: Tensor) -> Tensor:
        """Expectation ``[B, size]``."""

    @abstractmethod
    def variance(self, states: Tensor) -> Tensor:
        """Variance of every number, ``[B, size]`` or something that broadcasts to it."""

    @abstractmethod
    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """One fresh draw per row ``[B, size]``: rows that are the same state get draws of their own."""

    def train(self, mode: bool = True) -> Target:
        """Stay in eval mode: nothing here is trained."""
        return super().train(False)

    def freeze(self) -> None:
        """No gradient and eval mode, for good."""
        self.requires_grad_(False)
        self.train(False)


class FixedTarget(Target):
    """The output of one frozen random network, the target of RND (Burda et al., arXiv:1810.12894)."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.freeze()

    def mean(self, states: Tensor) -> Tensor:
        found: Tensor = self.network(states)
        return found

    def variance(self, states: Tensor) -> Tensor:
        return torch.zeros((), device=states.device)

    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        return self.mean(states)


class GaussianTarget(Target):
    """``N(mu(s), sigma^2 I)`` with ``mu = centre + network``, the target of RDD (arXiv:2505.11044).

    Args:
        network: frozen and random, states to ``[B, size]``.
        sigma: one standard deviation for all states and dimensions; 0 is RND.
        centre: added to the network's output, so that a predictor that answers 0 begins with a bonus near
            ``centre^2``.
    """

    def __init__(self, network: nn.Module, size: int, sigma: float = 1.0, centre: float = 0.0) -> None:
        super().__init__()
        if not sigma >= 0:
            raise UserError("sigma", sigma, "a number of at least 0")
        self.network, self.size, self.sigma, self.centre = network, size, float(sigma), float(centre)
        self.freeze()

    def mean(self, states: Tensor) -> Tensor:
        found: Tensor = self.network(states) + self.centre
        return found

    def variance(self, states: Tensor) -> Tensor:
        return torch.full((), self.sigma**2, device=states.device)

    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(states)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator).to(mean)


class EnsembleTarget(Target):
    """One of N frozen random networks, drawn anew per row: the target of DRND (Yang et al., arXiv:2401.09750)."""

    def __init__(self, networks: Sequence[nn.Module], size: int) -> None:
        super().__init__()
        if len(networks) < 2:
            raise UserError("networks", len(networks), "at least 2")
        self.networks, self.size = nn.ModuleList(networks), size
        self.freeze()

    def members(self, states: Tensor) -> Tensor:
        """All outputs, ``[N, B, size]``."""
        return torch.stack([network(states) for network in self.networks])

    def mean(self, states: Tensor) -> Tensor:
        return self.members(states).mean(dim=0)

    def variance(self, states: Tensor) -> Tensor:
        return self.members(states).var(dim=0, correction=0)

    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        members = self.members(states)
        chosen = torch.randint(len(members), (len(states),), generator=generator).to(members.device)
        return members[chosen, torch.arange(len(states), device=members.device)]


class CoinTarget(Target):
    """Fair coins +-1, whatever the state: the target of coin-flip networks (Lobel et al., arXiv:2306.03186)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def mean(self, states: Tensor) -> Tensor:
        return torch.zeros(len(states), self.size, device=states.device)

    def variance(self, states: Tensor) -> Tensor:
        return torch.ones((), device=states.device)

    def sample(self, states: Tensor, generator: torch.Generator) -> Tensor:
        coins = torch.randint(2, (len(states), self.size), generator=generator)
        return (2.0 * coins - 1.0).to(states.device)


class PriorPredictor(nn.Module):
    """A trained network plus a frozen random one of unit size, so that unseen states are far from a zero mean.

    Coin-flip networks need it: their target's mean is 0, and so is roughly the output of a fresh network, which would
    call everything known. Every row of the prior has a root mean square of 1.
    """

    def __init__(self, network: nn.Module, prior: nn.Module) -> None:
        super().__init__()
        self.network, self.prior = network, prior.requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        prior = self.prior(states)
        found: Tensor = self.network(states) + prior / prior.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-8)
        return found
