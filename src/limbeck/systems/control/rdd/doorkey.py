"""Part B (ii): DoorKey of minigrid. Find the key, open the door, reach the goal; the only reward is at the goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.control import SeededVectorEnv, Visits, perceptron
from limbeck.control.networks import orthogonal
from limbeck.errors import require

# Kinds of objects, colours and states that a cell of minigrid can show.
_KINDS = (11, 6, 4)
VIEW = 7 * 7 * sum(_KINDS)


def doorkey(size: int, environments: int, seed: int) -> SeededVectorEnv:
    """DoorKey of ``size`` cells a side, the agent's view ``[7, 7, 3]`` as observation, a new layout every episode."""
    gymnasium, minigrid = require("gymnasium", "control"), require("minigrid.wrappers", "control")

    def make() -> Any:
        return minigrid.ImgObsWrapper(gymnasium.make(f"MiniGrid-DoorKey-{size}x{size}-v0").unwrapped)

    return SeededVectorEnv([make] * environments, seed)


def one_hot_view(view: Tensor) -> Tensor:
    """Views ``[B, 7, 7, 3]`` of numbers as one-hot cells ``[B, VIEW]``."""
    most, offset = torch.tensor(_KINDS) - 1, torch.tensor([0, _KINDS[0], _KINDS[0] + _KINDS[1]])
    places = torch.minimum(view.long(), most) + offset
    places = places.flatten(1, 2) + sum(_KINDS) * torch.arange(49)[:, None]
    return torch.zeros(len(view), VIEW).scatter_(1, places.flatten(1), 1.0)


class ViewBody(nn.Module):
    """Two hidden layers on the one-hot view, for policy and values together."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = orthogonal(perceptron(VIEW, (64,), width))

    def forward(self, view: Tensor) -> Tensor:
        found: Tensor = self.layers(one_hot_view(view))
        return found


class Progress:
    """How far episodes came: key, door, goal; where the agent was; how many different views it had."""

    def __init__(self, environments: SeededVectorEnv, size: int) -> None:
        self.environments, self.visits = environments, Visits((size, size), (size - 2) ** 2)
        self.views: set[bytes] = set()
        count = environments.num_envs
        self.keys, self.doors = np.zeros(count, bool), np.zeros(count, bool)
        self.rates: dict[str, list[float]] = {"key": [], "door": []}

    def __call__(self, arrived: NDArray[Any], infos: Mapping[str, Any], valid: NDArray[Any]) -> None:
        self.views.update(view.tobytes() for view in arrived)
        ended = infos.get("_final_obs", np.zeros(len(arrived), bool))
        # The agent's own cell of the view shows what it carries; a door in state 0 is open.
        self.keys |= arrived[:, 3, 6, 0] == 5
        self.doors |= ((arrived[..., 0] == 4) & (arrived[..., 2] == 0)).any(axis=(1, 2))
        for index in np.flatnonzero(ended):
            self.rates["key"].append(float(self.keys[index]))
            self.rates["door"].append(float(self.doors[index]))
            self.keys[index] = self.doors[index] = False
        places = [environment.unwrapped.agent_pos for environment in self.environments.envs]
        self.visits.add(np.array([(y, x) for x, y in places]))
