"""Small gymnasium environments whose right answers are known."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):  # type: ignore[type-arg]
    """Places 0 to ``length`` as a number; goes right or left; ends at the right end, or by time after ``limit``."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, length: int = 3, limit: int = 6) -> None:
        self.length, self.limit = length, limit
        self.observation_space = gymnasium.spaces.Box(0.0, float(length), (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def _seen(self) -> Any:
        return np.array([self.place], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = 0, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action == 1 else -1))
        self.time += 1
        done = self.place == self.length
        return self._seen(), float(done), done, not done and self.time == self.limit, {}


class Reach(gymnasium.Env):  # type: ignore[type-arg]
    """One step; the reward is highest for an action of 0.5 in both of two bounded numbers."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, dtype=np.float64)), action
        return self.seen, -float(np.abs(np.asarray(action) - 0.5).sum()), True, False, {}
