"""Self-distillation with weighted ground truth (NeurIPS 2021).

A model is fitted again and again, each generation to a mix of the truth y and of what the one before it predicted,

    m^(tau) = alpha y + (1 - alpha) y^(tau-1),   y^(0) = y.

alpha weighs the TRUTH: 1 is plain training, 0 pure self-distillation. (Most distillation code weighs the teacher.)

In kernel ridge regression all generations, and the limit of infinitely many, have a closed form; see :mod:`.kernel`. A
network f_tau with probabilities p_tau minimises, with the frozen f_(tau-1) as its teacher,

    L = alpha mean (p_tau - y)^2 + (1 - alpha) mean (p_tau - p_(tau-1))^2 + 1e-4 sum_w ||w||_2,

means over batch and classes, and the norm (not its square) of every weight tensor.

The best alpha needs no grid. A ridge fit is linear in alpha, so that its validation predictions are
alpha a + (1 - alpha) b, with a those of the fit to y alone and b those of the fit to y^(tau-1) alone, and least squares
gives

    alpha* = <y_v - b, a - b> / ||a - b||^2,   clipped to [0, 1].

For networks the same is an approximation: the first network stands for a, one trained purely on the teacher for b.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from limbeck.engine import Generations
from limbeck.errors import UserError
from limbeck.nn.mode import evaluating
from limbeck.objectives import Brier, Objective, ProbabilityMSE, WeightNorm, with_weight_norm
from limbeck.signals import Batch, Forward

PENALTY = 1e-4
OPTIMAL = "optimal"


@dataclass(frozen=True)
class Weight:
    """The weight of the truth for one generation: ``alpha`` in [0, 1], and ``unclipped``, as least squares has it."""

    alpha: float
    unclipped: float


def optimal_alpha(target: Any, hard: Any, soft: Any) -> Weight:
    """The alpha whose mix ``alpha hard + (1 - alpha) soft`` is nearest to ``target`` in squared error.

    Args:
        target: truth of VALIDATION samples, ``[n]`` or ``[n, C]``. On training samples the fit to the truth always
            wins and alpha is 1.
        hard: their predictions by the fit to the truth (alpha = 1), same shape.
        soft: their predictions by the fit to the teacher (alpha = 0), same shape. Columns share one alpha.

    Returns:
        alpha 1 where the two predict the same, since then every alpha does.
    """
    truth, ours, theirs = (np.asarray(values, dtype=np.float64) for values in (target, hard, soft))
    if not truth.shape == ours.shape == theirs.shape or truth.size == 0:
        raise UserError(
            "predictions", f"{ours.shape} and {theirs.shape}", f"the target's shape {truth.shape}, not empty"
        )
    gap = ours - theirs
    # Below rounding the quotient is noise over noise.
    if np.abs(gap).max() <= 8 * np.finfo(np.float64).eps * max(np.abs(ours).max(), np.abs(theirs).max()):
        return Weight(1.0, 1.0)
    best = float(np.vdot(truth - theirs, gap) / np.vdot(gap, gap))
    return Weight(min(max(best, 0.0), 1.0), best)


def mixture(alpha: float, penalty: float = PENALTY) -> Objective:
    """The objective of one network generation; with alpha = 1 it needs no teacher."""
    if not 0 <= alpha <= 1:
        raise UserError("alpha", alpha, "0 to 1, the weight of the truth")
    parts: list[Objective] = [penalty * WeightNorm()] if penalty else []
    parts += [alpha * Brier(per_row="mean")] if alpha > 0 else []
    parts += [(1 - alpha) * ProbabilityMSE(per_row="mean")] if alpha < 1 else []
    objective: Objective = sum(parts)  # type: ignore[assignment]
    return objective


class NetworkSelfDistiller:
    """Self-distillation of networks: a chain of generations and the weight of the truth in each.

    Args:
        chain: who makes the networks, on which data, for how long; run by ``with_weight_norm`` if there is a penalty.
        alpha: one number, one for each generation after the first, or ``optimal``: estimated before each generation
            from two networks, the first one and one taught purely by the newest.
        validation: batches held out of training, for ``optimal``; their order does not matter.
        penalty: factor of the sum of weight norms.
    """

    def __init__(
        self,
        chain: Generations,
        alpha: float | Sequence[float] | str = 0.5,
        *,
        validation: Iterable[Batch] | None = None,
        penalty: float = PENALTY,
    ) -> None:
        if isinstance(alpha, str) and alpha != OPTIMAL:
            raise UserError("alpha", alpha, f"numbers from 0 to 1, or {OPTIMAL}")
        if isinstance(alpha, str) and validation is None:
            raise UserError("validation", "nothing", "held-out batches: on training samples the best alpha is always 1")
        self.chain, self.alpha, self.validation, self.penalty = chain, alpha, validation, penalty
        self.weights: list[Weight] = []

    def step(self) -> nn.Module:
        """Train the next generation; the first is plain training."""
        chain = self.chain
        if chain.number == 0:
            return chain.grow(mixture(1.0, self.penalty))
        if not isinstance(self.alpha, str):
            alpha = self._given(chain.number)
            self.weights.append(Weight(alpha, alpha))
            return chain.grow(mixture(alpha, self.penalty))
        soft = chain.attempt(mixture(0.0, self.penalty), "soft")
        self.weights.append(self.estimate(soft))
        # At 0 the attempt is the generation.
        alpha = self.weights[-1].alpha
        return chain.grow(mixture(alpha, self.penalty)) if alpha > 0 else chain.adopt(soft)

    def _given(self, number: int) -> float:
        given: Any = self.alpha
        if isinstance(given, (int, float)):
            return given
        if number > len(given):
            raise UserError("alpha", f"{len(given)} numbers", f"{number} or more, one for each later generation")
        return float(given[number - 1])

    def fit(self, generations: int = 5) -> NetworkSelfDistiller:
        """Grow the chain to ``generations`` networks, the first included."""
        while self.chain.number < generations:
            self.step()
        return self

    def estimate(self, soft: nn.Module) -> Weight:
        """alpha* for the next generation, ``soft`` being a network taught purely by the newest."""
        batches = list(self.validation or ())
        truth, hard = probabilities(self.chain.networks[0], batches, self.chain.forward)
        return optimal_alpha(truth, hard, probabilities(soft, batches, self.chain.forward)[1])


def probabilities(
    network: nn.Module, batches: Iterable[Batch], forward: Forward = with_weight_norm
) -> tuple[Tensor, Tensor]:
    """One-hot labels and probabilities ``[n, C]`` of a network in eval mode, float64."""
    with evaluating(network), torch.inference_mode():
        parts = [(batch["target"], forward(network, batch)["logits"].double().softmax(-1)) for batch in batches]
    said = torch.cat([part for _, part in parts])
    return one_hot(torch.cat([label for label, _ in parts]), said.shape[-1]).double(), said
