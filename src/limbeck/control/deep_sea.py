"""DeepSea: the chain that random walks do not solve, as a gymnasium environment and as a batch of them in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import UserError, require

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.spaces import Box, Discrete
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
else:
    Env = require("gymnasium", "control").Env
    _spaces, _vector = require("gymnasium.spaces", "control"), require("gymnasium.vector", "control")
    Box, Discrete = _spaces.Box, _spaces.Discrete
    AutoresetMode, VectorEnv = _vector.AutoresetMode, _vector.VectorEnv
    batch_space = require("gymnasium.vector.utils", "control").batch_space


class Sea:
    """The rules: a square of ``size``; every step goes down one row and left or right one column.

    Which of the two actions goes right differs from cell to cell, by ``layout``. Going right costs ``0.01 / size``.
    Only who goes right at every one of ``size`` steps gets 1, so a random walk succeeds with chance ``2^-size``, and
    the small cost leads greedy learners away. An observation is the cell as a one-hot vector of ``size^2`` numbers; the
    state behind the last row, where the episode ends, is all zeros.

    Source: Osband et al., Behaviour Suite for Reinforcement Learning (arXiv:1908.03568).
    """

    def __init__(self, size: int, layout: int = 0) -> None:
        if size < 2:
            raise UserError("size", size, "at least 2")
        self.size = size
        self.right = np.random.default_rng(layout).integers(2, size=(size, size))
        self.observation_space = Box(0.0, 1.0, (size * size,), np.float32)
        self.action_space = Discrete(2)

    @property
    def cells(self) -> int:
        """Cells that can be reached: column <= row."""
        return self.size * (self.size + 1) // 2

    @property
    def best_return(self) -> float:
        """Return of the best policy."""
        return 1.0 - 0.01

    def move(
        self, rows: NDArray[Any], columns: NDArray[Any], actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Columns after the step, rewards, and whether the treasure was found, each ``[N]``."""
        right = np.asarray(actions) == self.right[rows, columns]
        treasure = right & (rows == self.size - 1) & (columns == self.size - 1)
        moved = np.clip(columns + np.where(right, 1, -1), 0, self.size - 1)
        return moved, np.where(right, -0.01 / self.size, 0.0) + treasure, treasure

    def see(self, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.float32]:
        """Observations ``[N, size^2]``."""
        seen = np.zeros((len(rows), self.size * self.size), dtype=np.float32)
        inside = rows < self.size
        seen[np.flatnonzero(inside), (rows * self.size + columns)[inside]] = 1.0
        return seen


class DeepSea(Env):
    """One DeepSea for loops that step a single environment. See :class:`Sea`."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, size: int = 10, layout: int = 0) -> None:
        self.sea = Sea(size, layout)
        self.observation_space, self.action_space = self.sea.observation_space, self.sea.action_space
        self.row, self.column = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Back to the upper left corner."""
        super().reset(seed=seed)
        self.row[:], self.column[:] = 0, 0
        return self.sea.see(self.row, self.column)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One row down."""
        self.column, reward, treasure = self.sea.move(self.row, self.column, np.array([action]))
        self.row = self.row + 1
        observation = self.sea.see(self.row, self.column)[0]
        done = bool(self.row[0] == self.sea.size)
        return observation, float(reward[0]), done, False, {"treasure": bool(treasure[0])}


class DeepSeaVector(VectorEnv):
    """Many DeepSeas of one layout stepped as arrays, in ``SAME_STEP`` mode, with a state that can be kept."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, environments: int, size: int = 10, layout: int = 0) -> None:
        self.sea, self.num_envs = Sea(size, layout), environments
        self.single_observation_space, self.single_action_space = self.sea.observation_space, self.sea.action_space
        self.observation_space = batch_space(self.single_observation_space, environments)
        self.action_space = batch_space(self.single_action_space, environments)
        self.rows, self.columns = np.zeros(environments, np.int64), np.zeros(environments, np.int64)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """All back to the upper left corner; nothing here is drawn, so ``seed`` changes nothing."""
        self.rows[:], self.columns[:] = 0, 0
        return self.sea.see(self.rows, self.columns), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One row down everywhere. ``infos["cells"]`` ``[N, 2]`` are the cells acted in."""
        infos: dict[str, Any] = {"cells": np.stack([self.rows, self.columns], axis=1)}
        self.columns, rewards, infos["treasure"] = self.sea.move(self.rows, self.columns, np.asarray(actions))
        self.rows = self.rows + 1
        ended = self.rows == self.sea.size
        if ended.any():
            infos["final_obs"], infos["_final_obs"] = self.sea.see(self.rows, self.columns), ended
            self.rows, self.columns = np.where(ended, 0, self.rows), np.where(ended, 0, self.columns)
        observations = self.sea.see(self.rows, self.columns)
        return observations, rewards, ended, np.zeros_like(ended), infos

    def state_dict(self) -> dict[str, Any]:
        """Where everybody is."""
        return {"rows": torch.from_numpy(self.rows.copy()), "columns": torch.from_numpy(self.columns.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put everybody back."""
        self.rows, self.columns = state["rows"].numpy().copy(), state["columns"].numpy().copy()
