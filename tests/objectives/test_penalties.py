from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.objectives import Brier, ProbabilityMSE, WeightNorm, with_weight_norm
from limbeck.objectives.text import parse_objective


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_the_norm_is_a_sum_over_tensors_and_not_squared() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    batch = {"input": torch.randn(4, 3), "id": torch.arange(4)}
    signals = with_weight_norm(model, batch)
    expected = sum(float(p.norm()) for p in model.parameters() if p.requires_grad)
    term = (0.5 * WeightNorm())(signals, {}, batch)["weight_norm"]
    assert float(term.detach()) == pytest.approx(0.5 * expected, rel=1e-6)
    torch.testing.assert_close(signals["logits"], model(batch["input"]))


def test_its_gradient_has_length_one_and_is_zero_at_zero() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias.zero_()
    batch = {"input": torch.randn(4, 3), "id": torch.arange(4)}
    WeightNorm()(with_weight_norm(model, batch), {}, batch)["weight_norm"].backward()
    assert float(model[0].weight.grad.norm()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(model[1].bias.grad, torch.zeros(5))


def test_a_student_run_otherwise_is_told_what_is_missing() -> None:
    with pytest.raises(UserError, match="student signal: given weight_norm"):
        WeightNorm()({"logits": torch.ones(2, 2)}, {}, {})


def test_a_frozen_network_has_no_norm() -> None:
    batch = {"input": torch.randn(4, 3), "id": torch.arange(4)}
    assert float(with_weight_norm(network().requires_grad_(False), batch)["weight_norm"]) == 0


def test_text_reads_the_squared_errors() -> None:
    objective = parse_objective("0.35 * brier + 0.65 * probability_mse(temperature=2, per_row='sum')")
    student, teacher, target = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = objective({"logits": student}, {"logits": teacher}, {"target": target})
    soft = ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).square().sum(-1).mean()
    torch.testing.assert_close(found["probability_mse"], 0.65 * soft)
    hard = (student.softmax(-1) - torch.eye(3)[target]).square().mean()
    torch.testing.assert_close(found["brier"], 0.35 * hard)
    assert Brier().needs.target
    assert ProbabilityMSE().needs.teacher == ("logits",)
