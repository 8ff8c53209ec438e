"""A frozen network's maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.nn.multi_tap import MultiTap


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 2, 1), nn.Flatten(), nn.Linear(6 * 64, 2)
    )


def test_maps_by_name_with_the_stem_pooled() -> None:
    teacher = MultiTap(network(), {"t0": "1", "t1": "2"}, pooled=["t0"])
    images = torch.randn(2, 3, 32, 32)
    assert teacher.shapes(images) == {"t0": (4, 8, 8), "t1": (6, 8, 8)}
    made = teacher(images)
    expected = nn.functional.max_pool2d(teacher.network[1](teacher.network[0](images)), 3, 2, 1)  # type: ignore[index]
    torch.testing.assert_close(made["t0"], expected)
    assert not made["t1"].requires_grad


def test_it_stays_in_eval_mode() -> None:
    teacher = MultiTap(network(), {"t0": "1"})
    teacher.train()
    before = teacher.network[1].running_mean.clone()  # type: ignore[index, union-attr]
    teacher(torch.randn(2, 3, 32, 32))
    assert torch.equal(teacher.network[1].running_mean, before)  # type: ignore[index]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="pooled"):
        MultiTap(network(), {"t0": "1"}, pooled=["t9"])
