"""Penalties: terms that look at the student's weights, which reach an objective as a signal of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.objectives.base import Needs, Objective
from limbeck.signals import Batch, Signals, dense, run_network

WEIGHT_NORM = "weight_norm"


class WeightNorm(Objective):
    """Sum over the student's tensors of the norm (not its square) of each.

    ``reg = sum_p ||p||_2``; scale it by a coefficient: ``CrossEntropy() + 1e-4 * WeightNorm()``. Unlike weight decay
    it pulls every tensor, biases and norm scales included, by the same length whatever its size, so small tensors go
    to zero. The student must be run by :func:`with_weight_norm`.
    """

    needs = Needs(student=WEIGHT_NORM)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {WEIGHT_NORM: dense(student, WEIGHT_NORM)}


def with_weight_norm(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """:func:`~limbeck.signals.run_network`, and as the signal ``weight_norm`` what :class:`WeightNorm` asks for.

    Give it to a distiller as ``forward``. Tensors that do not learn do not count.
    """
    norms = [torch.linalg.vector_norm(weight) for weight in model.parameters() if weight.requires_grad]
    return {**run_network(model, batch), WEIGHT_NORM: torch.stack(norms).sum() if norms else torch.zeros(())}
