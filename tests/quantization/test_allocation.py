"""Points by steepness: the formula, the budget, and gradients that leave no trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.errors import UserError
from limbeck.objectives import CrossEntropy
from limbeck.quantization import allocate_points, gradient_norms


def test_by_hand() -> None:
    # Budget 48, half of 16 for each of three, 24 to share as 1 : 2 : 5.
    assert allocate_points({"a": 1.0, "b": 2.0, "c": 5.0}, 4) == {"a": 11, "b": 14, "c": 23}
    assert allocate_points({"a": 0.0, "b": 0.0}, 3) == {"a": 8, "b": 8}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(1, 8))
def test_the_budget_is_kept_and_nobody_has_less_than_two(norms: list[float], bits: int) -> None:
    counts = allocate_points({str(place): norm for place, norm in enumerate(norms)}, bits)
    assert sum(counts.values()) == len(norms) * 2**bits
    assert min(counts.values()) >= 2


def test_mistakes_are_named() -> None:
    for norms, bits in (({}, 2), ({"a": 1.0}, 0), ({"a": float("nan")}, 2), ({"a": -1.0}, 2)):
        with pytest.raises(UserError):
            allocate_points(norms, bits)


def test_gradient_norms_are_those_of_the_mean_gradient_and_leave_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    batches = [{"input": torch.randn(8, 4), "target": torch.randint(3, (8,)), "id": torch.arange(8)} for _ in range(7)]
    wanted = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    twin = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    twin.load_state_dict(model.state_dict())
    for batch in batches[:5]:
        twin.zero_grad()
        nn.functional.cross_entropy(twin(batch["input"]), batch["target"]).backward()
        for name, value in twin.named_parameters():
            wanted[name] += value.grad / 5
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given_norms = gradient_norms(model, batches, CrossEntropy())
    for name, value in wanted.items():
        assert given_norms[name] == pytest.approx(float(value.norm()), rel=1e-5, abs=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    with pytest.raises(UserError, match="batches"):
        gradient_norms(model, [], CrossEntropy())
