"""The pool of experts: both ends of a training and every mixture between, in one module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.condensation.evaluation import Training
from limbeck.condensation.experts import ExpertPool, FreshNetworks
from limbeck.data.split import Split
from limbeck.errors import UserError


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def pool() -> ExpertPool:
    values = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    data = Split(values, (values[:, 0] > 0).long(), torch.arange(32))
    return ExpertPool.train(build, data, Training(steps=5, batch_size=8), count=2, seed=3)


POOL = pool()


def test_both_ends_are_kept_and_mixed() -> None:
    for expert in range(2):
        initial, final = POOL.initial[expert], POOL.final[expert]
        assert not torch.equal(initial["0.weight"], final["0.weight"])
        for share, name in ((1.0, "0.weight"), (0.0, "0.weight"), (0.25, "1.running_mean")):
            POOL.mix(expert, share)
            expected = share * initial[name] + (1 - share) * final[name]
            torch.testing.assert_close(POOL.network.state_dict()[name], expected)
        assert POOL.network.state_dict()["1.num_batches_tracked"] == 5
    assert not torch.equal(POOL.initial[0]["0.weight"], POOL.initial[1]["0.weight"])


def test_the_beginning_is_that_of_the_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        assert torch.equal(build().state_dict()["0.weight"], POOL.initial[1]["0.weight"])


def test_a_draw_is_that_of_the_global_generator_and_leaves_the_experts_alone() -> None:
    before = {name: value.clone() for name, value in POOL.tensors().items()}
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append([(POOL.draw(), POOL.network.state_dict()["0.weight"].clone()) for _ in range(8)])
    assert {expert for expert, _ in drawn[0]} == {0, 1}
    for (one, first), (other, second) in zip(*drawn):
        assert one == other
        assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in POOL.tensors().items())


def test_networks_are_frozen_and_pass_gradients_to_their_input() -> None:
    module = POOL.network
    POOL.draw()
    assert POOL.network is module, "taps stay where they are"
    assert not module.training
    values = torch.rand(3, 2, requires_grad=True)
    module(values).sum().backward()
    assert values.grad is not None
    assert all(one.grad is None for one in module.parameters())


def test_the_trained_end_is_the_end() -> None:
    assert torch.equal(POOL.trained(1).state_dict()["3.weight"], POOL.final[1]["3.weight"])
    assert POOL.trained(0) is not POOL.network


def test_a_pool_is_read_back_from_tensors() -> None:
    again = ExpertPool.of(build, POOL.tensors())
    assert len(again) == 2
    assert all(torch.equal(again.tensors()[name], value) for name, value in POOL.tensors().items())


def test_fresh_networks_are_new_at_every_draw_and_have_no_trained_end() -> None:
    fresh = FreshNetworks(build)
    fresh.draw()
    first = fresh.network.state_dict()["0.weight"].clone()
    fresh.draw()
    assert not torch.equal(first, fresh.network.state_dict()["0.weight"])
    with pytest.raises(UserError, match="calibration: given FreshNetworks"):
        fresh.trained(0)


def test_unequal_ends_are_refused() -> None:
    with pytest.raises(UserError, match="experts: given 0 initial"):
        ExpertPool(build, [], [])
