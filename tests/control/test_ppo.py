"""PPO: it learns, handles ends of episodes in both ways of resetting, and resumes bit for bit."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from limbeck.control import (
    PPO,
    ActorCritic,
    DeepSeaVector,
    ExactCounts,
    NoBonus,
    PPOSettings,
    RewardMixer,
    RunningMoments,
    SeededVectorEnv,
)
from limbeck.control.policies import Choices, Squashed, actions_of
from limbeck.control.ppo import play
from limbeck.errors import UserError
from limbeck.systems.control.rdd.method import RDD, explorer
from tests.control.worlds import Corridor, Reach

SMALL = PPOSettings(rollout=16, epochs=2, minibatches=2, visits=16)


def test_learns_choices() -> None:
    world = SeededVectorEnv([partial(Corridor, 4, 12)] * 8)
    agent = explorer(world, NoBonus(), settings=PPOSettings(rollout=32, rate=3e-3), seed=0)
    agent.learn(6_000)
    assert np.mean(agent.episodes["return"][-50:]) > 0.95
    assert np.mean(agent.episodes["length"][-50:]) < 5
    assert play(SeededVectorEnv([partial(Corridor, 4, 12)] * 2), agent.network, 6) == [1.0] * 6


def test_learns_numbers_inside_bounds() -> None:
    agent = explorer(SeededVectorEnv([Reach] * 8), NoBonus(), settings=PPOSettings(rollout=32, rate=3e-3, entropy=0.0))
    agent.learn(12_000)
    assert np.mean(agent.episodes["return"][:100]) < -0.9
    assert np.mean(agent.episodes["return"][-100:]) > -0.35


def test_squashed_actions_have_the_density_of_what_the_environment_gets() -> None:
    actions = Squashed(np.array([-1.0]), np.array([3.0]))
    parameters = torch.tensor([[0.3, -0.2]]).repeat(200_000, 1)
    raw = actions.sample(parameters, torch.Generator().manual_seed(0))
    given = actions.to_environment(raw)
    assert given.min() >= -1
    assert given.max() <= 3
    edges = np.linspace(-0.9, 2.9, 20)
    density, _ = np.histogram(given, edges)
    middle = torch.as_tensor((edges[1:] + edges[:-1]) / 2, dtype=torch.float32)[:, None]
    inverse = torch.atanh((middle + 1) / 2 - 1)
    wanted = actions.log_prob(parameters[: len(middle)], inverse).exp().numpy()
    np.testing.assert_allclose(density / len(given) / np.diff(edges), wanted, rtol=0.05, atol=0.005)
    with pytest.raises(UserError, match="bounds"):
        Squashed(np.array([-np.inf]), np.array([1.0]))


def test_choices_agree_with_torch() -> None:
    logits = torch.randn(5, 3)
    reference = torch.distributions.Categorical(logits=logits)
    actions, generator = Choices(3, start=1), torch.Generator()
    raw = actions.sample(logits, generator)
    torch.testing.assert_close(actions.log_prob(logits, raw), reference.log_prob(raw))
    torch.testing.assert_close(actions.entropy(logits, generator), reference.entropy())
    assert (actions.to_environment(raw) == raw.numpy() + 1).all()


def collected(mode: AutoresetMode, **options: Any) -> tuple[PPO, Any, Any, list[tuple[Any, Any]]]:
    """Two corridors where everybody goes left: time limits only."""
    world = SyncVectorEnv([partial(Corridor, 3, 4)] * 2, autoreset_mode=mode)
    agent = explorer(world, ExactCounts(), settings=PPOSettings(rollout=12), **options)
    with torch.no_grad():
        agent.network.actor.bias.copy_(torch.tensor([50.0, -50.0]))
    seen: list[tuple[Any, Any]] = []
    agent.watchers.append(lambda arrived, infos, valid: seen.append((arrived.copy(), valid.copy())))
    rollout, batch = agent.collect()
    return agent, rollout, batch, seen


def test_time_limits_in_both_ways_of_resetting() -> None:
    same, same_rollout, _, _ = collected(AutoresetMode.SAME_STEP)
    next_, next_rollout, batch, seen = collected(AutoresetMode.NEXT_STEP)
    assert same_rollout.ended[:, 0].nonzero().flatten().tolist() == [3, 7, 11]
    # In NEXT_STEP mode every fifth step only resets: it is no step, pays nothing and counts nothing.
    assert (~batch["valid"][:, 0]).nonzero().flatten().tolist() == [4, 9]
    assert not next_rollout.intrinsic[~batch["valid"]].any()
    assert not same_rollout.terminated.any()
    assert not next_rollout.terminated.any()
    assert same.steps == 24
    assert next_.steps == 20
    assert same.episodes["length"][:2] == next_.episodes["length"][:2] == [4, 4]
    assert isinstance(next_.intrinsic, ExactCounts)
    assert int(next_.intrinsic.count(torch.zeros(1, 1))) == 20
    # What a time limit bootstraps from is the value of the true last state.
    with torch.no_grad():
        value = same.network.values(torch.zeros(1, 1))[0, 0]
    torch.testing.assert_close(same_rollout.arrival_values[3, 0, 0], value)
    assert len(seen) == 12


def test_terminal_states_are_paid_as_they_are_and_not_as_the_reset() -> None:
    world = SyncVectorEnv([partial(Corridor, 2, 9)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = explorer(world, ExactCounts(), settings=PPOSettings(rollout=8))
    with torch.no_grad():
        agent.network.actor.bias.copy_(torch.tensor([-50.0, 50.0]))
    agent.collect()
    assert isinstance(agent.intrinsic, ExactCounts)
    # Always right: 0 -> 1 -> 2 (end). The first place is never arrived at.
    assert agent.intrinsic.count(torch.tensor([[0.0], [1.0], [2.0]])).tolist() == [0, 8, 8]


def test_bonuses_are_read_before_the_rollout_is_counted_and_are_not_in_the_return() -> None:
    agent, rollout, _, _ = collected(AutoresetMode.SAME_STEP, coefficient=100.0)
    assert (rollout.intrinsic == 1.0).all()
    assert agent.episodes["return"][:2] == [0.0, 0.0]
    assert agent.episodes["bonus"][:2] == [4.0, 4.0]
    second, _ = agent.collect()
    torch.testing.assert_close(second.intrinsic, torch.full((12, 2), 1 / 24))


def worlds(kind: str) -> PPO:
    if kind == "deep_sea":
        return explorer(DeepSeaVector(4, 5), RDD((25,), size=8), settings=SMALL, seed=1)
    if kind == "two_streams":
        mixer = RewardMixer(streams="two", episodic=False)
        return explorer(DeepSeaVector(4, 5), RDD((25,), size=8), mixer=mixer, settings=SMALL, seed=1)
    maker = {"corridor": partial(Corridor, 3, 5), "reach": Reach}[kind]
    world = SeededVectorEnv([maker] * 3, seed=4)
    moments = RunningMoments(world.single_observation_space.shape, clip=5.0)
    return explorer(world, ExactCounts(), settings=SMALL, moments=moments, seed=1)


@pytest.mark.parametrize("kind", ["deep_sea", "two_streams", "corridor", "reach"])
def test_resumes_bit_for_bit(kind: str) -> None:
    whole = worlds(kind)
    first = worlds(kind)
    size = 2 * SMALL.rollout * whole.count
    whole.learn(2 * size)
    first.learn(size)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    # The first goes on: what was kept must not change with it.
    first.learn(size)
    buffer.seek(0)
    second = worlds(kind)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    second.learn(size)
    assert second.episodes == whole.episodes
    assert second.steps == whole.steps
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_state_in_memory_is_a_copy() -> None:
    agent, other = worlds("deep_sea"), worlds("deep_sea")
    agent.learn(64)
    kept = agent.state_dict()
    agent.learn(128)
    other.load_state_dict(kept)
    other.learn(128)
    for name, value in agent.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_playing_teaches_the_bonus_nothing() -> None:
    agent = worlds("deep_sea")
    agent.learn(64)
    before = agent.intrinsic.bonus(torch.eye(25))
    play(DeepSeaVector(2, 5), agent.network, 4)
    torch.testing.assert_close(agent.intrinsic.bonus(torch.eye(25)), before, rtol=0, atol=0)


def test_wrong_settings_are_refused_by_name() -> None:
    world = SyncVectorEnv([Corridor], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(UserError, match="autoreset mode DISABLED"):
        explorer(world, NoBonus())
    network = ActorCritic((25,), actions_of(DeepSeaVector(1, 5).single_action_space), heads=2)
    with pytest.raises(UserError, match="2 value heads"):
        PPO(DeepSeaVector(1, 5), network)
    with pytest.raises(UserError, match="action space"):
        actions_of(object())
