"""Targets, read-outs and trainings of random distillation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.control import (
    CoinTarget,
    EnsembleTarget,
    FixedTarget,
    GaussianTarget,
    Online,
    RandomDistillation,
    Replay,
    drnd,
    rnd,
)
from limbeck.control.targets import PriorPredictor
from limbeck.errors import UserError
from limbeck.systems.control.rdd.method import RDD

STATES = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 3)


TARGETS = {
    "fixed": lambda: FixedTarget(network(0), 3),
    "gaussian": lambda: GaussianTarget(network(0), 3, sigma=0.7, centre=1.0),
    "ensemble": lambda: EnsembleTarget([network(seed) for seed in range(4)], 3),
    "coin": lambda: CoinTarget(3),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_samples_have_the_mean_and_variance_that_the_target_names(kind: str) -> None:
    target, generator = TARGETS[kind](), torch.Generator().manual_seed(1)
    many = STATES.repeat(20_000, 1)
    with torch.no_grad():
        samples = target.sample(many, generator).reshape(20_000, 5, 3)
        variance = target.variance(STATES).expand(5, 3)
        torch.testing.assert_close(samples.mean(dim=0), target.mean(STATES), atol=0.03, rtol=0)
        torch.testing.assert_close(samples.var(dim=0), variance, atol=0.03, rtol=0.05)


def test_a_state_twice_in_a_batch_gets_two_samples() -> None:
    twice = STATES[:1].repeat(2, 1)
    for kind in ("gaussian", "coin"):
        draws = [TARGETS[kind]().sample(twice, torch.Generator().manual_seed(seed)) for seed in range(5)]
        assert any(not torch.equal(draw[0], draw[1]) for draw in draws)


def test_read_outs_are_their_formulas() -> None:
    target = TARGETS["ensemble"]()
    predictor = network(9)
    with torch.no_grad():
        prediction, mean = predictor(STATES), target.members(STATES).mean(0)
        second = target.members(STATES).square().mean(0)
        errors = (prediction - mean).square()
        share = ((prediction.square() - mean.square()).abs() / (second - mean.square())).clamp(1e-3, 1)
        wanted = {
            "mean": errors.mean(-1),
            "normalised": (errors / (second - mean.square())).mean(-1),
            "root": (errors / (second - mean.square())).mean(-1).sqrt(),
            "drnd": 0.9 * errors.sum(-1) + 0.1 * share.sqrt().mean(-1),
        }
    for readout, value in wanted.items():
        found = RandomDistillation(predictor, target, readout=readout).bonus(STATES)
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)
    own = RandomDistillation(predictor, target, readout=lambda prediction, target, states: prediction[:, 0])
    torch.testing.assert_close(own.bonus(STATES), prediction[:, 0])
    with pytest.raises(UserError, match=r"readout.*mean, sample, normalised, root, drnd"):
        RandomDistillation(predictor, target, readout="meen")


def test_without_noise_rdd_is_rnd() -> None:
    ours, theirs = RDD((4,), sigma=0.0, centre=0.0, seed=3), rnd((4,), seed=3)
    for _ in range(20):
        ours.update(STATES)
        theirs.update(STATES)
    torch.testing.assert_close(ours.bonus(STATES), theirs.bonus(STATES), rtol=0, atol=0)


def test_the_read_out_against_the_sample_keeps_a_floor_of_sigma_squared() -> None:
    settings = {"sigma": 2.0, "size": 64}
    right = RDD((4,), learning=Replay(3e-3, steps=8), **settings)
    wrong = RDD((4,), learning=Replay(3e-3, steps=8), readout="sample", **settings)
    for _ in range(150):
        right.update(STATES)
        wrong.update(STATES)
    assert float(right.bonus(STATES).mean()) < 0.3
    assert 3.0 < float(wrong.bonus(STATES).mean()) < 5.5


def test_a_prior_makes_unseen_states_pay_one() -> None:
    predictor = PriorPredictor(nn.Linear(4, 3), network(2))
    nn.init.zeros_(predictor.network.weight)
    nn.init.zeros_(predictor.network.bias)
    found = RandomDistillation(predictor, CoinTarget(3), readout="root").bonus(STATES)
    torch.testing.assert_close(found, torch.ones(5))


def test_a_falling_step_is_the_step_that_it_says() -> None:
    learning = Online(1e-2, halved_after=2)
    learning.attach(network(0))
    rates = []
    for _ in range(5):
        learning.step(STATES, torch.zeros(5, 3))
        rates.append(learning.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 / (1 + k / 2) for k in range(5)])


def test_replay_keeps_one_row_for_a_state_and_the_gradient_of_all_its_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(STATES[torch.tensor([0, 1, 0, 2])], torch.randn(4, 3, generator=generator)) for _ in range(6)]
    learning = Replay(1e-3, steps=1, batch_size=100)
    learning.attach(network(0))
    plain = network(0)
    every = [torch.cat(part) for part in zip(*batches)]
    for states, samples in batches[:-1]:
        learning._keep(states, samples)
    learning.step(*batches[-1])
    assert learning.kept == 3
    assert learning.numbers[:3].tolist() == [12, 6, 6]
    (plain(every[0]) - every[1]).square().mean(-1).mean().backward()
    gradient = plain.weight.grad
    used = learning.network.weight.grad
    assert gradient is not None
    torch.testing.assert_close(used, gradient, rtol=1e-4, atol=1e-6)


def test_a_full_replay_is_a_uniform_reservoir() -> None:
    learning = Replay(1e-3, steps=1, capacity=10, batch_size=4, seed=1)
    learning.attach(nn.Linear(1, 1))
    # Every state's sample is the state itself, so a mean that got another's sample shows.
    for part in torch.arange(1000.0)[:, None].split(50):
        learning._keep(part, part)
    assert learning.kept == 10
    assert len(learning.rows) == 10
    assert learning.distinct == 1000
    assert 200 < float(learning.states[:10].mean()) < 800
    torch.testing.assert_close(learning.means[:10], learning.states[:10], rtol=0, atol=0)
    assert learning.numbers[:10].tolist() == [1.0] * 10
    for key, row in learning.rows.items():
        assert learning.states[row].numpy().tobytes() == key


def test_drnd_begins_at_the_spread_of_its_targets() -> None:
    reward = drnd((4,), members=5, seed=0)
    assert isinstance(reward.target, EnsembleTarget)
    assert len({float(part[1].weight.sum()) for part in reward.target.networks}) == 5


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}])
def test_wrong_settings_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="share"):
        rnd((4,), **wrong)
    with pytest.raises(UserError, match="sigma"):
        RDD((4,), sigma=-1.0)
    with pytest.raises(UserError, match="networks"):
        drnd((4,), members=1)
    with pytest.raises(UserError, match="rate"):
        Online(0.0)
    with pytest.raises(UserError, match="steps"):
        Replay(steps=0)
