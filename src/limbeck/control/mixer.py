"""How the reward of the world and the bonus become one advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.control.advantages import generalised_advantages
from limbeck.control.normalise import ReturnScale
from limbeck.errors import UserError

STREAMS = ("single", "two")


@dataclass
class Rollout:
    """What was lived through in T steps of N environments; all ``[T, N]`` but the values, ``[T, N, streams]``.

    Attributes:
        extrinsic, intrinsic: reward of the world; bonus of the state arrived at.
        values: of the states acted in.
        arrival_values: of the states arrived at (the true last ones where an episode ended).
        seen_values: of what is seen next (the first state of the next episode where one ended).
        terminated, ended: how episodes ended, and that they did.
    """

    extrinsic: Tensor
    intrinsic: Tensor
    values: Tensor
    arrival_values: Tensor
    seen_values: Tensor
    terminated: Tensor
    ended: Tensor


class RewardMixer:
    """Adds the bonus to the reward: in one stream, or in two with a value head each.

    * ``single``: ``r = extrinsic_weight r_e + coefficient r_i``, one value, one advantage. Both returns end with the
      episode. The form of RDD and of most loops.
    * ``two``: ``A = extrinsic_weight A_e + coefficient A_i``, each with its own discount. The intrinsic return may then
      run over the ends of episodes (``episodic=False``, the original RND), so that dying costs no future bonus.

    Args:
        coefficient: weight of the bonus.
        streams: ``single`` or ``two``.
        episodic: whether the intrinsic return ends with the episode. Non-episodic needs two streams: one value cannot
            hold both horizons.
        normalise: divide bonuses by the running deviation of their discounted sum.
        intrinsic_discount: gamma of the bonus, for its stream and for the normaliser.
        extrinsic_weight: weight of the world's reward or advantage; 2 in the original RND.
    """

    def __init__(
        self,
        coefficient: float = 1.0,
        *,
        streams: str = "single",
        episodic: bool = True,
        normalise: bool = True,
        intrinsic_discount: float = 0.99,
        extrinsic_weight: float = 1.0,
    ) -> None:
        if streams not in STREAMS:
            raise UserError("streams", streams, STREAMS)
        if streams == "single" and not episodic:
            raise UserError("episodic", False, 'True with streams="single"', 'a non-episodic bonus needs streams="two"')
        self.coefficient, self.streams, self.episodic = coefficient, streams, episodic
        self.normalise, self.intrinsic_discount, self.extrinsic_weight = normalise, intrinsic_discount, extrinsic_weight
        self.scale: ReturnScale | None = None

    @property
    def heads(self) -> int:
        """Values that the agent's critic needs."""
        return STREAMS.index(self.streams) + 1

    def scaled(self, bonuses: Tensor) -> Tensor:
        """Bonuses ``[T, N]`` after normalisation, which takes them in first."""
        if not self.normalise:
            return bonuses
        if self.scale is None:
            self.scale = ReturnScale(bonuses.shape[1], self.intrinsic_discount)
        self.scale.update(bonuses)
        return self.scale(bonuses)

    def advantages(self, rollout: Rollout, *, discount: float, decay: float) -> tuple[Tensor, Tensor]:
        """Advantages ``[T, N]``, and targets of the values ``[T, N, heads]``."""
        bonuses = self.scaled(rollout.intrinsic)
        if self.streams == "single":
            mixed = self.extrinsic_weight * rollout.extrinsic + self.coefficient * bonuses
            found = self._stream(rollout, mixed, 0, discount, decay, episodic=True)
            return found, (found + rollout.values[..., 0])[..., None]
        outer = self._stream(rollout, rollout.extrinsic, 0, discount, decay, episodic=True)
        inner = self._stream(rollout, bonuses, 1, self.intrinsic_discount, decay, episodic=self.episodic)
        targets = torch.stack([outer, inner], dim=-1) + rollout.values
        return self.extrinsic_weight * outer + self.coefficient * inner, targets

    def _stream(
        self, rollout: Rollout, rewards: Tensor, head: int, discount: float, decay: float, *, episodic: bool
    ) -> Tensor:
        never = torch.zeros_like(rollout.ended)
        return generalised_advantages(
            rewards,
            rollout.values[..., head],
            (rollout.arrival_values if episodic else rollout.seen_values)[..., head],
            rollout.terminated if episodic else never,
            rollout.ended if episodic else never,
            discount=discount,
            decay=decay,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"scale": None if self.scale is None else self.scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["scale"] is None:
            self.scale = None
            return
        self.scale = ReturnScale(len(state["scale"]["sums"]), self.intrinsic_discount)
        self.scale.load_state_dict(state["scale"])
