"""Generalised advantage estimation, with time limits that bootstrap and terminations that do not."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    discount: float = 0.99,
    decay: float = 0.95,
) -> Tensor:
    """``A_t = delta_t + discount decay (1 - ended_t) A_{t+1}``, ``delta_t = r_t + discount (1 - terminated_t) V' - V``.

    ``V'`` is the value of the state arrived at, which at the end of an episode is its true last state and not the first
    of the next. A termination has no future, so nothing is added; a time limit cuts the sum but keeps ``V'``. For a
    return that runs over the ends of episodes pass zeros for both flags and the value of what is seen next.

    Args:
        rewards, values, next_values: ``[T, N]`` in the order of time.
        terminated, ended: bool ``[T, N]``; ``ended`` is terminated or truncated.
        discount, decay: gamma and lambda.

    Returns:
        ``[T, N]``; the targets of the values are ``advantages + values``.

    Source: Schulman et al., arXiv:1506.02438.
    """
    shapes = {tuple(each.shape) for each in (rewards, values, next_values, terminated, ended)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise UserError("rewards, values, flags", sorted(shapes), "one shape [T, N]")
    deltas = rewards + discount * next_values * (~terminated).to(rewards) - values
    carry = discount * decay * (~ended).to(rewards)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for time in range(len(deltas) - 1, -1, -1):
        running = deltas[time] + carry[time] * running
        advantages[time] = running
    return advantages
