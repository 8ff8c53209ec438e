"""Actor-critic networks and the two kinds of actions: choices, and continuous ones inside bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from limbeck.control.networks import orthogonal, perceptron
from limbeck.errors import UserError


class Actions(Protocol):
    """A distribution over actions, given what the actor says. Raw actions are what is stored and scored."""

    outputs: int
    raw_shape: tuple[int, ...]
    raw_dtype: torch.dtype

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor: ...
    def best(self, parameters: Tensor) -> Tensor: ...
    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor: ...
    def entropy(self, parameters: Tensor, generator: torch.Generator) -> Tensor: ...
    def to_environment(self, raw: Tensor) -> NDArray[Any]: ...


class Choices:
    """One of ``count`` actions; the actor gives logits ``[B, count]``."""

    raw_shape: tuple[int, ...] = ()
    raw_dtype = torch.int64

    def __init__(self, count: int, start: int = 0) -> None:
        self.outputs, self.start = count, start

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        return torch.multinomial(parameters.softmax(dim=-1), 1, generator=generator).squeeze(-1)

    def best(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(dim=-1)

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        return parameters.log_softmax(dim=-1).gather(-1, raw[..., None]).squeeze(-1)

    def entropy(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        logs = parameters.log_softmax(dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)

    def to_environment(self, raw: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = raw.cpu().numpy() + self.start
        return found


class Squashed:
    """Gaussian actions through tanh into ``[low, high]``; the actor gives means and log deviations ``[B, 2 d]``.

    Clipping a Gaussian at the bounds would score actions that the environment never saw. Here the raw action u is kept,
    the environment gets ``low + (tanh u + 1) / 2 (high - low)``, and
    ``log p(a) = log N(u) - sum log(1 - tanh^2 u) - sum log((high - low) / 2)``.
    The entropy has no closed form: it is estimated with one fresh draw, which gradients pass through.
    """

    raw_dtype = torch.float32

    def __init__(self, low: NDArray[Any], high: NDArray[Any]) -> None:
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UserError("action space", f"bounds {low} to {high}", "finite bounds")
        self.shape = low.shape
        self.low, self.high = (torch.as_tensor(bound.ravel(), dtype=torch.float32) for bound in (low, high))
        self.raw_shape: tuple[int, ...] = (len(self.low),)
        self.outputs = 2 * len(self.low)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_deviation = parameters.chunk(2, dim=-1)
        return mean, log_deviation.clamp(-5.0, 2.0)

    def _log_slope(self, raw: Tensor) -> Tensor:
        tanh = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        return (tanh + ((self.high - self.low) / 2).log().to(raw)).sum(dim=-1)

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_deviation = self._split(parameters)
        return mean + log_deviation.exp() * torch.randn(mean.shape, generator=generator).to(mean)

    def best(self, parameters: Tensor) -> Tensor:
        return self._split(parameters)[0]

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        mean, log_deviation = self._split(parameters)
        normal = -0.5 * ((raw - mean) / log_deviation.exp()).square() - log_deviation - 0.5 * math.log(2 * math.pi)
        return normal.sum(dim=-1) - self._log_slope(raw)

    def entropy(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        return -self.log_prob(parameters, self.sample(parameters, generator))

    def to_environment(self, raw: Tensor) -> NDArray[Any]:
        half = (raw.cpu().tanh() + 1) / 2
        found: NDArray[Any] = (self.low + half * (self.high - self.low)).numpy()
        return found.reshape(len(found), *self.shape)


def actions_of(space: Any) -> Actions:
    """The kind of actions for a gymnasium space of a single environment: ``Discrete`` or a bounded ``Box``."""
    if hasattr(space, "n") and not hasattr(space, "nvec") and np.ndim(space.n) == 0:
        return Choices(int(space.n), int(getattr(space, "start", 0)))
    if hasattr(space, "low") and hasattr(space, "high"):
        return Squashed(space.low, space.high)
    raise UserError("action space", type(space).__name__, "Discrete, Box")


class ActorCritic(nn.Module):
    """A policy and its values: ``states -> (what the distribution of actions needs, values [B, heads])``.

    Args:
        shape: of one observation.
        actions: the kind of actions (:func:`actions_of`).
        heads: values, one for each stream of reward.
        body: makes a network from observations to ``[B, width]``; by default a perceptron each for policy and values.
            A given body is made once and shared, as images want it.
        width: numbers that the body gives.
        hidden: of the perceptrons.
    """

    def __init__(
        self,
        shape: Sequence[int],
        actions: Actions,
        *,
        heads: int = 1,
        body: Callable[[], nn.Module] | None = None,
        width: int = 64,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        self.actions = actions
        self.shared = body is not None
        features = math.prod(shape)

        def plain() -> nn.Module:
            return nn.Sequential(orthogonal(perceptron(features, hidden, width)), nn.Tanh())

        self.policy_body = plain() if body is None else nn.Sequential(orthogonal(body()), nn.ReLU())
        self.value_body = plain() if body is None else nn.Identity()
        # A nearly uniform policy to begin with: large first logits would be preferences of chance.
        self.actor = orthogonal(nn.Linear(width, actions.outputs), 0.01)
        self.critic = orthogonal(nn.Linear(width, heads), 1.0)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.policy_body(states)
        return self.actor(hidden), self.critic(hidden if self.shared else self.value_body(states))

    def values(self, states: Tensor) -> Tensor:
        """Values alone, ``[B, heads]``."""
        found: Tensor = self.critic(self.policy_body(states) if self.shared else self.value_body(states))
        return found
