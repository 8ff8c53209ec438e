"""Running normalisers against the whole data at once."""

from __future__ import annotations

import pytest
import torch

from limbeck.control import ReturnScale, RunningMoments
from limbeck.errors import UserError


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = 3 + 2 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = RunningMoments((4,), clip=1.5)
    for part in rows.split([1, 30, 0, 69]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.variance, rows.var(0, correction=0))
    white = moments(rows)
    assert white.abs().max() == 1.5
    with pytest.raises(UserError, match="rows"):
        moments.update(torch.zeros(2, 3))


def test_unused_moments_change_nothing() -> None:
    rows = torch.randn(3, 2)
    torch.testing.assert_close(RunningMoments((2,), clip=0.1)(rows), rows, rtol=0, atol=0)


def test_returns_run_over_rollouts_and_scale_without_centring() -> None:
    rewards = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    parts, whole = ReturnScale(3, 0.9), ReturnScale(3, 0.9)
    for part in rewards.split(20):
        parts.update(part)
    whole.update(rewards)
    sums, found = torch.zeros(3), []
    for row in rewards:
        sums = 0.9 * sums + row
        found.append(sums)
    deviation = torch.stack(found).std(correction=0)
    torch.testing.assert_close(parts(rewards), rewards / deviation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole(rewards), parts(rewards))
    assert (parts(rewards) >= 0).all()
    with pytest.raises(UserError, match=r"\[T, 3\]"):
        whole.update(rewards[0])
