"""The contract of intrinsic rewards: what an agent is paid for going where it has seldom been."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError


class IntrinsicReward(ABC):
    """A bonus for states, learnt from the visits to them.

    States are float tensors ``[B, ...]``, one row per visit; the same state twice in a batch is two visits.
    :meth:`bonus` only reads, so it may be called as often as one likes and in evaluation; visits count through
    :meth:`update` alone. Call ``bonus`` on the states arrived at, then ``update`` on the same states. At the end of an
    episode the state arrived at is the true last one, not that of the reset (``limbeck.control.arrivals`` sorts that
    out for gymnasium's vector environments).

    All state, the frozen target networks included, is in :meth:`state_dict`, in types that
    ``torch.load(weights_only=True)`` reads.
    """

    def observe(self, states: Tensor) -> None:  # noqa: B027
        """Take ``states`` into the normaliser, if there is one, without counting a visit."""

    @abstractmethod
    def update(self, states: Tensor) -> dict[str, float]:
        """Count one visit for every row; returns what is worth logging, such as ``{"loss": 0.1}``."""

    @abstractmethod
    def bonus(self, states: Tensor) -> Tensor:
        """How new every row is, ``[B]``, without gradient."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides later bonuses."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""

    def to(self, device: torch.device | str) -> IntrinsicReward:
        """Move what is computed with to ``device``."""
        return self


class NoBonus(IntrinsicReward):
    """Pays nothing: the agent without exploration, through the same loop."""

    def update(self, states: Tensor) -> dict[str, float]:
        checked(states)
        return {}

    def bonus(self, states: Tensor) -> Tensor:
        return torch.zeros(len(checked(states)), device=states.device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def checked(states: Tensor) -> Tensor:
    """``states`` if they are ``[B, ...]`` and finite.

    Raises:
        UserError: not a tensor; no batch axis; numbers that are not finite, which would poison networks for good.
    """
    if not isinstance(states, Tensor):
        raise UserError("states", type(states).__name__, "a torch tensor, [B, ...]")
    if states.ndim < 2:
        raise UserError("states", f"a tensor of shape {list(states.shape)}", "a batch of states, [B, ...]")
    if states.is_floating_point() and not bool(torch.isfinite(states).all()):
        rows = (~torch.isfinite(states.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
        raise UserError("states", f"numbers that are not finite in rows {rows[:5]}", "finite numbers")
    return states
