"""A vector environment whose episodes are seeded, so that its state is a few numbers that can be put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.errors import UserError, require

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
else:
    _vector = require("gymnasium.vector", "control")
    AutoresetMode, VectorEnv = _vector.AutoresetMode, _vector.VectorEnv
    batch_space = require("gymnasium.vector.utils", "control").batch_space


class SeededVectorEnv(VectorEnv):
    """Steps gymnasium environments one after the other (``SAME_STEP`` mode), each episode with a seed of its own.

    gymnasium keeps no state that could be saved. Here an episode is a pure function of (seed, environment, number of
    the episode, actions so far): :meth:`state_dict` holds those, and :meth:`load_state_dict` plays the running episodes
    again. Exact for every environment that is deterministic given its seed and begins anew at reset.

    Args:
        makers: functions that make one environment each, with an array as observation.
        seed: of all episodes.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, makers: Sequence[Callable[[], Any]], seed: int = 0) -> None:
        if not makers:
            raise UserError("makers", 0, "at least one")
        self.envs = [make() for make in makers]
        self.num_envs, self.seed = len(self.envs), seed
        self.single_observation_space, self.single_action_space = (
            self.envs[0].observation_space,
            self.envs[0].action_space,
        )
        if not hasattr(self.single_observation_space, "low"):
            raise UserError("observations", type(self.single_observation_space).__name__, "Box")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.episodes = [-1] * self.num_envs
        self.actions: list[list[Any]] = [[] for _ in self.envs]

    def _begin(self, index: int, episode: int) -> tuple[Any, dict[str, Any]]:
        self.episodes[index], self.actions[index] = episode, []
        drawn = np.random.SeedSequence([self.seed, index, episode]).generate_state(1)[0]
        observation, info = self.envs[index].reset(seed=int(drawn) % 2**31)
        return observation, dict(info)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode everywhere; a given ``seed`` (one number) begins the whole sequence anew."""
        if seed is not None:
            if not isinstance(seed, int):
                raise UserError("seed", seed, "one number for all environments")
            self.seed, self.episodes = seed, [-1] * self.num_envs
        found = [self._begin(index, self.episodes[index] + 1)[0] for index in range(self.num_envs)]
        return np.stack(found), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all; an episode that ends is followed by the next at once, its last state in ``final_obs``."""
        observations, rewards, terminations, truncations = [], [], [], []
        infos: dict[str, Any] = {}
        for index, environment in enumerate(self.envs):
            action = actions[index]
            self.actions[index].append(np.array(action))
            observation, reward, terminated, truncated, _ = environment.step(action)
            if terminated or truncated:
                final = infos.setdefault("final_obs", np.full(self.num_envs, None, dtype=object))
                final[index] = observation
                infos.setdefault("_final_obs", np.zeros(self.num_envs, dtype=bool))[index] = True
                observation, _ = self._begin(index, self.episodes[index] + 1)
            observations.append(observation)
            rewards.append(float(reward))
            terminations.append(bool(terminated))
            truncations.append(bool(truncated))
        return np.stack(observations), np.array(rewards), np.array(terminations), np.array(truncations), infos

    def state_dict(self) -> dict[str, Any]:
        """Seed, number of the episode and actions so far of every environment."""
        played = [torch.from_numpy(np.stack(actions)) if actions else torch.empty(0) for actions in self.actions]
        return {"seed": self.seed, "episodes": list(self.episodes), "actions": played}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the running episodes again up to where they were."""
        self.seed = int(state["seed"])
        for index, (episode, actions) in enumerate(zip(state["episodes"], state["actions"], strict=True)):
            self._begin(index, int(episode))
            for action in actions.numpy():
                self.actions[index].append(np.array(action))
                self.envs[index].step(action)

    def close_extras(self, **options: Any) -> None:
        """Close every environment."""
        for environment in self.envs:
            environment.close()
