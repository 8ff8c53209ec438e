from __future__ import annotations

import pytest

from limbeck.schedules import Cosine, HalfLife, Linear, at


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_ends_middle_and_beyond(kind: type) -> None:
    schedule = kind(0.9, 0.1)
    assert schedule(0.0) == pytest.approx(0.9)
    assert schedule(0.5) == pytest.approx(0.5)
    assert schedule(1.0) == pytest.approx(0.1)
    assert schedule(-1.0) == pytest.approx(0.9)
    assert schedule(2.0) == pytest.approx(0.1)


def test_a_cosine_starts_slowly() -> None:
    assert Cosine(0.0, 1.0)(0.1) < Linear(0.0, 1.0)(0.1)


def test_at_reads_numbers_and_schedules() -> None:
    assert at(3, 0.7) == 3.0
    assert at(Linear(0.0, 10.0), 0.7) == pytest.approx(7.0)


def test_half_life_ramps_up_and_then_stays() -> None:
    schedule = HalfLife(100, 10_000)
    assert schedule(0.0) == 0.0
    assert schedule(0.01) == pytest.approx(0.5 ** (1 / 5))
    assert schedule(0.5) == schedule(1.0) == pytest.approx(0.5 ** (1 / 100))
    assert HalfLife(100, 10_000, ramp=None)(0.0) == pytest.approx(0.5 ** (1 / 100))
