"""A pool of experts that nobody trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from limbeck.condensation import ExpertPool


def expert_pool(build: Callable[[], nn.Module]) -> ExpertPool:
    """Two networks before and two others after their training."""
    states = []
    for seed in range(4):
        torch.manual_seed(seed)
        states.append(build().state_dict())
    return ExpertPool(build, states[:2], states[2:])
