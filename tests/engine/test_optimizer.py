from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError


def rates(steps: int, **options: object) -> list[float]:
    settings = OptimizerSettings(lr=2.0, **options)  # type: ignore[arg-type]
    optimizer, schedule = settings.build(nn.Linear(2, 2).parameters(), steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_follow_their_formula() -> None:
    assert rates(4, schedule="constant") == [2.0] * 4
    assert rates(4, schedule="linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates(4) == pytest.approx([1 + math.cos(math.pi * step / 4) for step in range(4)])
    assert rates(20, schedule="step") == pytest.approx([2.0] * 12 + [0.2] * 5 + [0.02] * 3)


def test_warmup_rises_from_above_zero_to_the_full_rate() -> None:
    found = rates(10, schedule="linear", warmup=0.4)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[5:] == sorted(found[5:], reverse=True)
    assert rates(2, warmup=0.1)[0] == 2.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_matrices_are_decayed_and_frozen_weights_left_out(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False))
    optimizer, _ = OptimizerSettings(name, weight_decay=0.3).build(model.parameters(), 10)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {
        id(model[0].weight): 0.3, id(model[0].bias): 0.0, id(model[1].weight): 0.0, id(model[1].bias): 0.0,
    }  # fmt: skip


def test_fused_or_not_is_the_same_arithmetic() -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer, _ = OptimizerSettings().build(model.parameters(), 10, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "options",
    [{"name": "adamx"}, {"schedule": "cosin"}, {"lr": 0.0}, {"lr": math.inf}, {"lr": math.nan}, {"warmup": 1.0}],
)
def test_wrong_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="given .*; allowed: "):
        OptimizerSettings(**options)  # type: ignore[arg-type]


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(UserError, match="trainable parameters: given none"):
        OptimizerSettings().build(nn.Linear(2, 2).requires_grad_(False).parameters(), 10)


def test_rates_scale_the_learning_rate_by_name_and_follow_the_schedule() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    settings = OptimizerSettings(lr=2.0, schedule="linear", rates=(("0.weight", 0.25), ("0.*", 0.5)))
    optimizer, schedule = settings.build(model.named_parameters(), 4)

    def found() -> dict[str, float]:
        by_id = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        return {name: by_id[id(weight)] for name, weight in model.named_parameters()}

    assert found() == {"0.weight": 0.5, "0.bias": 1.0, "1.weight": 2.0, "1.bias": 2.0}
    optimizer.step()
    schedule.step()
    schedule.step()
    assert found() == {"0.weight": 0.25, "0.bias": 0.5, "1.weight": 1.0, "1.bias": 1.0}
    with pytest.raises(UserError, match="rates: given 2.*"):
        OptimizerSettings(rates=(("2.*", 0.5),)).build(model.named_parameters(), 4)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_betas_reach_the_optimiser(name: str) -> None:
    optimizer, _ = OptimizerSettings(name, betas=(0.9, 0.95)).build(nn.Linear(2, 2).parameters(), 4)
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
