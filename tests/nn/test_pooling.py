"""Pooling over groups: which rows count, and how much."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.pooling import group_numbers, masked_pool

VALUES = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OFFSETS = torch.tensor([0, 3, 3, 7])


def test_groups_may_be_empty() -> None:
    assert group_numbers(OFFSETS).tolist() == [0, 0, 0, 2, 2, 2, 2]
    for reduction in ("sum", "mean", "max"):
        assert masked_pool(VALUES, OFFSETS, reduction=reduction)[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_it_is_the_reduction_of_the_rows_that_count(reduction: str) -> None:
    mask = torch.tensor([True, False, True, False, True, True, True])
    out = masked_pool(VALUES, OFFSETS, mask, reduction)
    first, last = VALUES[[0, 2]], VALUES[[4, 5, 6]]
    expected = {
        "sum": [first.sum(0), last.sum(0)],
        "mean": [first.mean(0), last.mean(0)],
        "max": [first.amax(0), last.amax(0)],
    }[reduction]
    torch.testing.assert_close(out[[0, 2]], torch.stack(expected))


def test_weights_scale_the_sum_and_the_mean() -> None:
    weight = torch.tensor([2.0, 0.0, 1.0, 1.0, 0.0, 0.0, 3.0], dtype=torch.float64)
    total = masked_pool(VALUES, OFFSETS, weight)
    torch.testing.assert_close(total[0], 2 * VALUES[0] + VALUES[2])
    torch.testing.assert_close(masked_pool(VALUES, OFFSETS, weight, "mean")[0], (2 * VALUES[0] + VALUES[2]) / 3)


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_rows_that_do_not_count_have_no_effect_and_no_gradient(reduction: str) -> None:
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    values = VALUES.clone()
    values[~mask] = torch.nan
    values.requires_grad_()
    out = masked_pool(values, OFFSETS, mask, reduction)
    assert bool(out.isfinite().all())
    out.sum().backward()
    assert values.grad is not None
    assert values.grad[~mask].abs().sum() == 0
    assert bool(values.grad.isfinite().all())


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UserError, match="reduction: given median"):
        masked_pool(VALUES, OFFSETS, reduction="median")
    with pytest.raises(UserError, match="offsets: given 6"):
        masked_pool(VALUES, torch.tensor([0, 6]))
