"""Two players on one number: one makes it small, the other large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def min_max_step(
    value: Tensor,
    minimiser: Optimizer | Any,
    maximiser: Optimizer | Any | None,
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> None:
    """One simultaneous step: the minimiser's parameters go down ``value``, the maximiser's go up.

    Both gradients are taken at the same point, in one backward pass through one graph. That is what two passes with
    ``value`` and ``-value`` over a retained graph give, at half the price; it is not the alternating game, in which the
    second player sees the first one's move.

    Args:
        value: a scalar with both players in its graph.
        minimiser, maximiser: their optimisers, of disjoint parameters; without a maximiser this is a plain step.
        backward: such as a LightningModule's ``manual_backward``.
    """
    players = [minimiser] if maximiser is None else [minimiser, maximiser]
    for player in players:
        player.zero_grad()
    backward(value)
    if maximiser is not None:
        for group in maximiser.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.neg_()
    for player in players:
        player.step()
