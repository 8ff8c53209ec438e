"""Coreset selectors: their definitions, and how many samples a number of bytes buys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from limbeck.condensation import selection
from limbeck.condensation.selection import Order, herding_order, k_center_order, random_order, select
from limbeck.errors import UserError

POINTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(12) % 3


@pytest.mark.parametrize("order", [random_order, herding_order, k_center_order])
def test_an_order_holds_every_sample_once(order: object) -> None:
    assert sorted(order(POINTS, 1)) == list(range(12))  # type: ignore[operator]
    alike = torch.ones(4, 2)
    assert sorted(order(alike, 1)) == list(range(4))  # type: ignore[operator]


@pytest.mark.parametrize("order", [herding_order, k_center_order])
def test_images_are_ranked_as_their_flat_values_and_without_the_table(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(order(POINTS, 0))
    assert list(order(POINTS.reshape(12, 1, 3, 1), 0)) == expected
    monkeypatch.setattr(selection, "_MOST_PRODUCTS", 5)
    assert list(order(POINTS, 0)) == expected


def test_a_few_of_many_are_a_few_steps() -> None:
    def counted(features: torch.Tensor, seed: int) -> Iterator[int]:
        for row in range(len(features)):
            assert row < 2, "nobody asked for a third"
            yield row

    assert select(counted, POINTS, TARGET, per_class=2).tolist() == [0, 3, 1, 4, 2, 5]


def test_herding_brings_the_mean_nearest_at_every_step() -> None:
    order, mean = list(herding_order(POINTS)), POINTS.mean(0)
    for size in range(1, 6):
        errors = [
            float((POINTS[[*order[: size - 1], one]].mean(0) - mean).norm())
            for one in range(12)
            if one not in order[: size - 1]
        ]
        assert float((POINTS[order[:size]].mean(0) - mean).norm()) == pytest.approx(min(errors), abs=1e-6)


def test_k_center_is_within_twice_the_best_radius() -> None:
    def radius(centres: Sequence[int]) -> float:
        return float(torch.cdist(POINTS, POINTS[list(centres)]).amin(1).max())

    for size in (2, 3):
        best = min(radius(chosen) for chosen in itertools.combinations(range(12), size))
        assert radius(list(k_center_order(POINTS))[:size]) <= 2 * best + 1e-6


def test_random_orders_are_those_of_the_seed() -> None:
    assert list(random_order(POINTS, 1)) == list(random_order(POINTS, 1))
    assert list(random_order(POINTS, 1)) != list(random_order(POINTS, 2))


def test_every_class_gets_its_number() -> None:
    chosen = select(herding_order, POINTS, TARGET, per_class=2)
    assert TARGET[chosen].bincount().tolist() == [2, 2, 2]
    first = (TARGET == 0).nonzero().squeeze(-1)
    assert chosen[:2].tolist() == first[list(herding_order(POINTS[first]))[:2]].tolist()


def test_a_budget_is_filled_class_by_class_with_what_still_fits() -> None:
    cost = torch.tensor([5, 5, 5, 1, 1, 1, 9, 9, 9, 2, 2, 2])

    def size(rows: Sequence[int]) -> int:
        return int(cost[list(rows)].sum())

    chosen = select(random_order, POINTS, TARGET, budget=24, size=size, seed=3)
    assert size(chosen.tolist()) <= 24
    counts = TARGET[chosen].bincount(minlength=3)
    assert int(counts.min()) >= 1
    for row in set(range(12)) - set(chosen.tolist()):
        assert size([*chosen.tolist(), row]) > 24, "nothing that fits is left out"


def test_a_budget_below_one_sample_per_class_leaves_classes_out_by_the_seed() -> None:
    chosen = [select(random_order, POINTS, TARGET, budget=2, size=len, every_class=False, seed=s) for s in range(8)]
    assert {len(set(TARGET[rows].tolist())) for rows in chosen} == {2}
    assert len({tuple(sorted(TARGET[rows].tolist())) for rows in chosen}) > 1


def test_budgets_that_buy_too_little_are_refused() -> None:
    with pytest.raises(UserError, match="budget: given 2 bytes; .*1 classes have none"):
        select(random_order, POINTS, TARGET, budget=2, size=len)
    for wrong in ({}, {"per_class": 1, "budget": 3, "size": len}, {"budget": 3}):
        with pytest.raises(UserError, match="exactly one of per_class and budget"):
            select(random_order, POINTS, TARGET, **wrong)  # type: ignore[arg-type]
