"""How many points every tensor gets: more where the loss is steeper, within one budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.nn.substitute import substituted
from limbeck.objectives.base import Objective, total
from limbeck.signals import Batch, Forward, run_network


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    count: int = 5,
    forward: Forward = run_network,
) -> dict[str, float]:
    """Euclidean norm of every parameter's gradient, as the mean over the first ``count`` batches.

    The gradient of ``objective`` (which needs no teacher) is taken in the mode that the network is in; its buffers and
    gradients stay what they were.
    """
    parameters = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    # Stand-ins, so that a frozen network has gradients too and nobody's own are touched.
    twins = {name: weight.detach().requires_grad_() for name, weight in parameters.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    seen = 0
    with torch.enable_grad(), substituted(model, twins, buffers="keep"):
        for batch in islice(batches, count):
            loss = total(objective(forward(model, batch), {}, batch))
            gradients = torch.autograd.grad(loss, list(twins.values()), allow_unused=True)
            for name, gradient in zip(twins, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient
            seen += 1
    if not seen:
        raise UserError("batches", "none", "at least one batch")
    return {name: float(torch.linalg.vector_norm(value / seen)) for name, value in sums.items()}


def allocate_points(norms: Mapping[str, float], bits: int) -> dict[str, int]:
    """Points of every tensor: half of 2^bits for each, the rest of the budget in proportion to the gradient norms.

    ``n_i = s // 2 + round(G_i / sum G * rest)``, ``s = 2^bits``, ``rest = N s - N (s // 2)``. What rounding puts above
    the budget is taken from the tensor with most points, what it leaves is given to the one with fewest. The sum is
    exactly ``N s``, and every tensor has at least 2 points. Without any gradient all get s.

    Raises:
        UserError: no tensors, bits below 1, a norm that is negative or not finite.
    """
    if not norms:
        raise UserError("norms", "none", "one norm per tensor")
    if bits < 1:
        raise UserError("bits", bits, "1 or more")
    bad = next((name for name, norm in norms.items() if not 0 <= norm < float("inf")), None)
    if bad is not None:
        raise UserError(f"gradient norm of {bad}", norms[bad], "a number of at least 0")
    whole, half = 2**bits, max(2**bits // 2, 2)
    budget = whole * len(norms)
    rest, steepness = budget - half * len(norms), sum(norms.values())
    if steepness == 0:
        return dict.fromkeys(norms, whole)
    counts = {name: half + round(norm / steepness * rest) for name, norm in norms.items()}
    while (surplus := sum(counts.values()) - budget) != 0:
        chosen = max(counts, key=counts.__getitem__) if surplus > 0 else min(counts, key=counts.__getitem__)
        counts[chosen] -= 1 if surplus > 0 else -1
    return counts
