"""Coresets: real samples that stand for their class, and how many of them a number of bytes buys.

An order ranks the samples of one class, one after another: the first k of it are the coreset of size k. Ten of six
thousand images cost ten steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from limbeck.errors import UserError

#: ``order(features [n, D], seed)``: positions inside the class, int, the best first, each once.
Order = Callable[[Tensor, int], Iterator[int]]
# Up to here all inner products of a class are made at once.
_MOST_PRODUCTS = 2_000


def random_order(features: Tensor, seed: int = 0) -> Iterator[int]:
    """Any order."""
    yield from torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).tolist()


def herding_order(features: Tensor, seed: int = 0) -> Iterator[int]:
    """Each next sample brings the mean of the chosen ones nearest to the mean of the class (Welling, ICML 2009).

    The seed plays no part; of equal samples the first is taken.
    """
    values = features.flatten(1).double()
    product, own, to_mean = _products(values), values.square().sum(1), values @ values.mean(dim=0)
    with_chosen, free = torch.zeros_like(to_mean), torch.ones(len(values), dtype=torch.bool)
    for size in range(1, len(values) + 1):
        # |(t + f) / k - m|^2, t the sum of the chosen, but for what is the same for every candidate f.
        distance = (2 * with_chosen + own) / size - 2 * to_mean
        best = int(torch.where(free, distance, torch.inf).argmin())
        yield best
        free[best] = False
        with_chosen = with_chosen + product(best)


def k_center_order(features: Tensor, seed: int = 0) -> Iterator[int]:
    """The sample nearest to the mean, then each time the one farthest from all chosen (Gonzalez, 1985; Sener and
    Savarese, ICLR 2018). The seed plays no part."""
    values = features.flatten(1).double()
    values = values - values.mean(dim=0)
    product, own = _products(values), values.square().sum(1)
    best, nearest = int(own.argmin()), torch.full_like(own, torch.inf)
    for _ in range(len(values)):
        yield best
        # Chosen ones stay at minus infinity.
        nearest = torch.minimum(nearest, own + own[best] - 2 * product(best))
        nearest[best] = -torch.inf
        best = int(nearest.argmax())


def _products(values: Tensor) -> Callable[[int], Tensor]:
    """Row -> its inner products with all rows."""
    if len(values) <= _MOST_PRODUCTS:
        table = values @ values.T
        return lambda row: table[row]
    return lambda row: values @ values[row]


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
        features: ``[N, D]``, or images ``[N, ...]`` as they are: where distances mean something.
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
    ranked = {label: map(rows.tolist().__getitem__, order(features[rows], seed)) for label, rows in members.items()}
    if per_class is not None or budget is None or size is None:
        chosen = [row for rows in ranked.values() for row in islice(rows, per_class)]
        return torch.tensor(chosen, dtype=torch.int64)
    if not every_class:
        turns = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
        ranked = {classes[turn]: ranked[classes[turn]] for turn in turns}
    chosen, before = list[int](), -1
    while len(chosen) > before:
        before = len(chosen)
        for rows in ranked.values():
            # Rows that were passed over are gone: a set that has grown has no more room for them.
            fitting = next((row for row in rows if size([*chosen, row]) <= budget), None)
            chosen += [] if fitting is None else [fitting]
    missing = set(classes) - set(target[chosen].tolist())
    if missing and every_class:
        raise UserError(
            "budget", f"{budget} bytes", "room for a sample of every class", f"{len(missing)} classes have none"
        )
    return torch.tensor(chosen, dtype=torch.int64)
