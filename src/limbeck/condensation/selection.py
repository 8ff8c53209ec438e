"""Coresets: real samples that stand for their class, and how many of them a number of bytes buys.

An order function ranks the samples of one class: the first k of it are the coreset of size k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError

#: ``order(features [n, D], seed) -> int64 [n]``: positions inside the class, the best first.
Order = Callable[[Tensor, int], Tensor]


def random_order(features: Tensor, seed: int = 0) -> Tensor:
    """Any order."""
    return torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))


def herding_order(features: Tensor, seed: int = 0) -> Tensor:
    """Each next sample brings the mean of the chosen ones nearest to the mean of the class (Welling, ICML 2009).

    The seed plays no part; of equal samples the first is taken.
    """
    values = features.double()
    products, to_mean = values @ values.T, values @ values.mean(dim=0)
    own, with_chosen, chosen = products.diagonal(), torch.zeros_like(to_mean), list[int]()
    free = torch.ones(len(features), dtype=torch.bool)
    for size in range(1, len(features) + 1):
        # |(t + f) / k - m|^2, t the sum of the chosen, but for what is the same for every candidate f.
        distance = (2 * with_chosen + own) / size - 2 * to_mean
        best = int(torch.where(free, distance, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        with_chosen = with_chosen + products[best]
    return torch.tensor(chosen, dtype=torch.int64)


def k_center_order(features: Tensor, seed: int = 0) -> Tensor:
    """The sample nearest to the mean, then each time the one farthest from all chosen (Gonzalez, 1985; Sener and
    Savarese, ICLR 2018). The seed plays no part."""
    values = features.double()
    values = values - values.mean(dim=0)
    products = values @ values.T
    own = products.diagonal()
    chosen = [int(own.argmin())]
    nearest = own + own[chosen[0]] - 2 * products[chosen[0]]
    nearest[chosen[0]] = -torch.inf
    while len(chosen) < len(features):
        best = int(nearest.argmax())
        chosen.append(best)
        nearest = torch.minimum(nearest, own + own[best] - 2 * products[best])
        nearest[chosen] = -torch.inf
    return torch.tensor(chosen, dtype=torch.int64)


def select(
    order: Order,
    features: Tensor,
    target: Tensor,
    *,
    per_class: int | None = None,
    budget: int | None = None,
    size: Callable[[Sequence[int]], int] | None = None,
    every_class: bool = True,
    seed: int = 0,
) -> Tensor:
    """Positions of the chosen samples, class by class in turn.

    Args:
        order: how the samples of a class are ranked.
        features: ``[N, D]``, where distances mean something.
        target: classes ``[N]``.
        per_class: samples of every class; or
        budget: most bytes, with ``size``: positions -> bytes of a set of these samples. The classes take turns; a
            sample that no longer fits is passed over for the next one of its class that does.
        every_class: refuse a budget that does not buy a sample of every class; otherwise the classes that come first in
            an order drawn from the seed get one.
        seed: of random orders.

    Raises:
        UserError: not exactly one of ``per_class`` and ``budget``; the budget does not buy one sample of every class.
    """
    if (per_class is None) == (budget is None) or (size is None) != (budget is None):
        given = f"per_class={per_class}, budget={budget}"
        raise UserError("select", given, "exactly one of per_class and budget; budget needs size")
    classes = target.unique().tolist()
    members = {label: (target == label).nonzero().squeeze(-1) for label in classes}
    ranked = {label: rows[order(features[rows], seed)].tolist() for label, rows in members.items()}
    if per_class is not None or budget is None or size is None:
        return torch.tensor([row for rows in ranked.values() for row in rows[:per_class]], dtype=torch.int64)
    if not every_class:
        turns = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
        ranked = {classes[turn]: ranked[classes[turn]] for turn in turns}
    chosen: list[int] = []
    while any(ranked.values()):
        for rows in ranked.values():
            while rows:
                row = rows.pop(0)
                if size([*chosen, row]) <= budget:
                    chosen.append(row)
                    break
    missing = set(classes) - set(target[chosen].tolist())
    if missing and every_class:
        raise UserError(
            "budget", f"{budget} bytes", "room for a sample of every class", f"{len(missing)} classes have none"
        )
    return torch.tensor(chosen, dtype=torch.int64)
