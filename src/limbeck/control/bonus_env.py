"""A gymnasium vector environment that pays bonuses, so that any loop explores without a change to its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.control.arrivals import arrivals, autoreset_mode
from limbeck.control.intrinsic import IntrinsicReward, checked
from limbeck.control.normalise import ReturnScale
from limbeck.errors import UserError, require

if TYPE_CHECKING:
    from gymnasium.vector import VectorWrapper
else:
    VectorWrapper = require("gymnasium.vector", "control").VectorWrapper


class BonusVectorEnv(VectorWrapper):
    """Adds ``coefficient`` times the bonus of the state arrived at to every reward, and learns from the visit.

    The state is the true last one where an episode ends. It is paid for as it was before this visit, then counted. A
    step that only resets (``NEXT_STEP`` mode) pays nothing and counts nothing. ``infos`` gain ``extrinsic_reward`` and
    ``intrinsic_reward`` (``[N]``), so that a loop can report what the world paid.

    Works with anything that steps a gymnasium vector environment (CleanRL's loops, Stable-Baselines3 through its
    adapters). Networks are stepped with every step of the environments: take as many environments as you can.

    Args:
        env: vector environment with observations that are one array.
        intrinsic: what pays.
        coefficient: weight of the bonus.
        normalise: divide by the running deviation of the discounted bonuses.
        discount: of that sum.
        states: from the observations ``[N, ...]`` to what ``intrinsic`` sees; a float tensor of them by default.
        warm_up: steps in which the normaliser of ``intrinsic`` only observes and nothing is paid or learnt.
    """

    def __init__(
        self,
        env: Any,
        intrinsic: IntrinsicReward,
        *,
        coefficient: float = 1.0,
        normalise: bool = True,
        discount: float = 0.99,
        states: Callable[[NDArray[Any]], Tensor] | None = None,
        warm_up: int = 0,
    ) -> None:
        super().__init__(env)
        if not hasattr(env.single_observation_space, "low") and states is None:
            raise UserError(
                "env", f"observations {type(env.single_observation_space).__name__}", "Box, or give `states`"
            )
        self.intrinsic, self.coefficient = intrinsic, coefficient
        self.scale = ReturnScale(env.num_envs, discount) if normalise else None
        self.states = states or (lambda observations: torch.as_tensor(observations).float())
        self.warm_up, self.learning = warm_up, True
        self.mode = autoreset_mode(env)
        self._ended = np.zeros(env.num_envs, dtype=bool)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Reset; the first states of episodes are nobody's merit, so they are neither paid nor counted."""
        observations, infos = self.env.reset(**options)
        mask = (options.get("options") or {}).get("reset_mask")
        self._ended = self._ended & ~mask if mask is not None else np.zeros_like(self._ended)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step, pay, learn."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.asarray(terminated) | np.asarray(truncated)
        found, valid = arrivals(self.mode, observations, infos, ended, self._ended)
        self._ended = ended
        bonuses, warming = torch.zeros(len(ended)), self.warm_up > 0
        if valid.any():
            states = checked(self.states(found[valid]))
            bonuses[torch.from_numpy(valid)] = self._visit(states).float().cpu()
        if self.scale is not None:
            if self.learning and not warming:
                self.scale.update(bonuses[None])
            bonuses = self.scale(bonuses)
        paid = bonuses.numpy().astype(np.float64)
        infos = dict(infos) | {"extrinsic_reward": np.asarray(rewards, np.float64), "intrinsic_reward": paid}
        return observations, rewards + self.coefficient * paid, terminated, truncated, infos

    def _visit(self, states: Tensor) -> Tensor:
        warming = self.warm_up > 0
        bonuses = torch.zeros(len(states)) if warming else self.intrinsic.bonus(states)
        if self.learning:
            self.intrinsic.observe(states)
            if warming:
                self.warm_up -= 1
            else:
                self.intrinsic.update(states)
        return bonuses

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, bonuses are read and nothing is learnt from the visits."""
        before, self.learning = self.learning, False
        try:
            yield
        finally:
            self.learning = before

    def state_dict(self) -> dict[str, Any]:
        """What the bonuses depend on, and the environment's own state where it can give one."""
        inner = getattr(self.env, "state_dict", None)
        return {
            "intrinsic": self.intrinsic.state_dict(),
            "scale": None if self.scale is None else self.scale.state_dict(),
            "warm_up": self.warm_up,
            "ended": torch.from_numpy(self._ended.copy()),
            "env": inner() if inner is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self.intrinsic.load_state_dict(state["intrinsic"])
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        self.warm_up = int(state["warm_up"])
        self._ended = state["ended"].numpy().copy()
        if state["env"] is not None:
            restorable: Any = self.env
            restorable.load_state_dict(state["env"])
