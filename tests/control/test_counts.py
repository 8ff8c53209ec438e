"""Exact and hashed counters."""

from __future__ import annotations

import pytest
import torch

from limbeck.control import ExactCounts, HashCounts
from limbeck.errors import UserError


def test_exact_counts_pay_the_power_that_they_are_asked_for() -> None:
    counts, roots = ExactCounts(), ExactCounts(0.5)
    visits = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1])]
    for one in (counts, roots):
        one.update(visits)
    torch.testing.assert_close(counts.bonus(torch.eye(3)), torch.tensor([0.25, 1.0, 1.0]))
    torch.testing.assert_close(roots.bonus(torch.eye(3)), torch.tensor([0.5, 1.0, 1.0]))
    assert counts.count(torch.eye(3)).tolist() == [4, 1, 0]


def test_minus_zero_is_zero() -> None:
    counts = ExactCounts()
    counts.update(torch.tensor([[0.0], [-0.0]]))
    assert counts.count(torch.tensor([[-0.0]])).tolist() == [2]


def test_hashes_see_directions() -> None:
    counts = HashCounts(3, bits=32)
    counts.update(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
    assert counts.count(torch.tensor([[3.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])).tolist() == [2, 0]
    with pytest.raises(UserError, match="numbers per state"):
        counts.bonus(torch.zeros(1, 4))


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="power"):
        ExactCounts(0.0)
    with pytest.raises(UserError, match="bits"):
        HashCounts(3, 0)
