"""Substituted weights: seen inside, gone outside, whatever happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.nn.substitute import WeightView, substituted


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def test_inside_the_network_uses_the_others_and_outside_its_own() -> None:
    model = network().eval()
    own, before = model[0].weight, model(X)
    with substituted(model, {"0.weight": torch.zeros(4, 3)}):
        assert model[0].weight is not own
        torch.testing.assert_close(model[0](X), model[0].bias.expand(6, 4))
    assert model[0].weight is own
    assert isinstance(model[0].weight, nn.Parameter)
    assert torch.equal(model(X), before)


def test_the_gradient_goes_to_what_the_tensors_were_made_of_also_after_the_block() -> None:
    model = network()
    with substituted(model, {name: 2 * value for name, value in model.named_parameters()}):
        loss = model(X).square().sum()
    loss.backward()
    doubled = network()
    with torch.no_grad():
        for value in doubled.parameters():
            value.mul_(2)
    doubled(X).square().sum().backward()
    for ours, theirs in zip(model.parameters(), doubled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


def test_an_exception_brings_the_own_weights_back() -> None:
    model = network()
    before = [id(value) for value in model.parameters()]
    with pytest.raises(RuntimeError), substituted(model, {"2.weight": torch.zeros(2, 5)}):
        model(X)
    assert [id(value) for value in model.parameters()] == before


@pytest.mark.parametrize("buffers", ["update", "keep"])
def test_the_policy_for_statistics(buffers: str) -> None:
    model = network().train()
    before = model[1].running_mean.clone()
    place = model[1].running_mean
    with substituted(model, {"0.weight": torch.ones(4, 3)}, buffers=buffers):
        model(X)
    assert model[1].running_mean is place
    assert torch.equal(model[1].running_mean, before) == (buffers == "keep")
    assert int(model[1].num_batches_tracked) == (buffers == "update")


def test_a_tied_weight_is_replaced_under_all_its_names() -> None:
    model = nn.ModuleDict({"in": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["in"].weight
    with substituted(model, {"out.weight": torch.zeros(5, 3)}):
        assert model["in"].weight is model["out"].weight
        assert not model["in"].weight.any()
    assert model["in"].weight is model["out"].weight
    assert model["in"].weight.any()


def test_a_recurrent_network_whose_kernel_keeps_references_of_its_own() -> None:
    torch.manual_seed(0)
    model, other, values = nn.LSTM(3, 4), nn.LSTM(3, 4), torch.randn(5, 2, 3)
    before = model(values)[0]
    with substituted(model, dict(other.named_parameters())):
        assert torch.equal(model(values)[0], other(values)[0])
    assert torch.equal(model(values)[0], before)


def test_blocks_nest_and_shapes_may_differ() -> None:
    model = nn.Linear(3, 4)
    with substituted(model, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}):
        assert model(X).shape == (6, 2)
        with substituted(model, {"bias": torch.ones(2)}):
            torch.testing.assert_close(model(X), X.sum(1, keepdim=True).expand(6, 2) + 1)
        torch.testing.assert_close(model(X), X.sum(1, keepdim=True).expand(6, 2))
    assert model(X).shape == (6, 4)


def test_unknown_names_and_policies_are_named() -> None:
    with pytest.raises(UserError, match="0.weigth"), substituted(network(), {"0.weigth": X}):
        pass
    with pytest.raises(UserError, match="buffers"), substituted(network(), {}, buffers="drop"):
        pass
    with pytest.raises(UserError, match="weight view"):
        WeightView().tensors(network())
