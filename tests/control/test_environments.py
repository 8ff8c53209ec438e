"""DeepSea, seeded vector environments, the wrapper that pays bonuses, and coverage."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from limbeck.control import BonusVectorEnv, DeepSea, DeepSeaVector, ExactCounts, SeededVectorEnv, Visits
from limbeck.control.arrivals import autoreset_mode
from limbeck.control.coverage import first_success, regret, steps_to_share
from limbeck.errors import UserError
from tests.control.worlds import Corridor, Reach


def test_deep_sea_is_a_gymnasium_environment() -> None:
    check_env(DeepSea(4), skip_render_check=True)


@pytest.mark.parametrize("size", [3, 6])
def test_only_going_right_all_the_way_finds_the_treasure(size: int) -> None:
    world = DeepSea(size, layout=2)
    for wrong in [None, *range(size)]:
        world.reset()
        total, done, step = 0.0, False, 0
        while not done:
            right = int(world.sea.right[world.row[0], world.column[0]])
            _, reward, done, cut, infos = world.step(right if step != wrong else 1 - right)
            total, step = total + reward, step + 1
            assert not cut
        assert step == size
        assert infos["treasure"] == (wrong is None)
        assert total == pytest.approx(world.sea.best_return if wrong is None else -0.01 * (size - 1) / size)


def test_the_batch_steps_as_single_ones_do() -> None:
    batch, single = DeepSeaVector(3, 5, layout=1), [DeepSea(5, layout=1) for _ in range(3)]
    seen, _ = batch.reset()
    np.testing.assert_array_equal(seen, np.stack([one.reset()[0] for one in single]))
    random = np.random.default_rng(0)
    for _ in range(23):
        actions = random.integers(2, size=3)
        seen, rewards, ended, _, infos = batch.step(actions)
        for index, one in enumerate(single):
            mine, reward, done, _, _ = one.step(actions[index])
            assert rewards[index] == reward
            assert ended[index] == done
            if done:
                np.testing.assert_array_equal(infos["final_obs"][index], mine)
                assert not mine.any()
                mine, _ = one.reset()
            np.testing.assert_array_equal(seen[index], mine)


def test_seeded_episodes_can_be_put_back() -> None:
    def trace(world: Any, steps: int, seed: int) -> list[Any]:
        random = np.random.default_rng(seed)
        return [world.step(random.uniform(0, 1, (2, 2)))[:4] for _ in range(steps)]

    first, second, other = (SeededVectorEnv([Reach] * 2, seed=seed) for seed in (3, 8, 4))
    first.reset()
    trace(first, 5, 0)
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(trace(first, 5, 1), trace(second, 5, 1)):
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)
    again, _ = SeededVectorEnv([Reach] * 2, seed=3).reset()
    np.testing.assert_array_equal(again, first.reset(seed=3)[0])
    assert not np.array_equal(again, other.reset()[0])
    assert not np.array_equal(again[0], again[1])


def test_the_same_minigrid_after_putting_back() -> None:
    import minigrid.wrappers as minigrid

    def make() -> Any:
        return minigrid.ImgObsWrapper(gymnasium.make("MiniGrid-Empty-Random-5x5-v0").unwrapped)

    first, second = SeededVectorEnv([make] * 2, seed=1), SeededVectorEnv([make] * 2, seed=1)
    first.reset()
    actions = np.random.default_rng(0).integers(3, size=(130, 2))
    for action in actions[:110]:
        first.step(action)
    second.load_state_dict(first.state_dict())
    for action in actions[110:]:
        np.testing.assert_array_equal(first.step(action)[0], second.step(action)[0])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_wrapper_pays_for_the_true_last_state(mode: AutoresetMode) -> None:
    counts = ExactCounts()
    world = SyncVectorEnv([partial(Corridor, 2, 9)] * 2, autoreset_mode=mode)
    paying = BonusVectorEnv(world, counts, coefficient=0.5, normalise=False)
    paying.reset(seed=0)
    assert autoreset_mode(paying) == mode.value
    right = np.ones(2, dtype=np.int64)
    expected = {  # bonus per step, always going right: places 1, 2 (end), then 1, 2 again
        AutoresetMode.SAME_STEP: [1.0, 1.0, 0.5, 0.5],
        AutoresetMode.NEXT_STEP: [1.0, 1.0, 0.0, 0.5, 0.5],
        AutoresetMode.DISABLED: [1.0, 1.0, 0.5, 0.5],
    }[mode]
    for bonus in expected:
        _, rewards, terminated, truncated, infos = paying.step(right)
        np.testing.assert_allclose(infos["intrinsic_reward"], bonus)
        np.testing.assert_allclose(infos["extrinsic_reward"], terminated.astype(float))
        np.testing.assert_allclose(rewards, infos["extrinsic_reward"] + 0.5 * bonus)
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            paying.reset(options={"reset_mask": ended})
    assert counts.count(torch.tensor([[0.0], [1.0], [2.0]])).tolist() == [0, 4, 4]


def test_evaluation_and_warm_up_count_nothing() -> None:
    counts = ExactCounts()
    paying = BonusVectorEnv(DeepSeaVector(2, 4), counts, warm_up=2)
    paying.reset()
    for _ in range(2):
        assert not paying.step(np.zeros(2, np.int64))[4]["intrinsic_reward"].any()
    assert not counts.counts
    assert paying.scale is not None
    assert not paying.scale.moments.count, "what is not paid is no bonus of size 0"
    with paying.evaluation():
        paying.step(np.zeros(2, np.int64))
    assert not counts.counts
    paying.step(np.zeros(2, np.int64))
    assert sum(counts.counts.values()) == 2


def test_observations_that_are_not_finite_are_refused_even_while_warming_up() -> None:
    world = SyncVectorEnv([partial(Corridor, 2, 9)], autoreset_mode=AutoresetMode.SAME_STEP)
    spoilt = BonusVectorEnv(world, ExactCounts(), warm_up=3, states=lambda seen: torch.full((len(seen), 1), torch.nan))
    spoilt.reset(seed=0)
    with pytest.raises(UserError, match="not finite"):
        spoilt.step(np.zeros(1, np.int64))


def test_the_wrapper_resumes() -> None:
    def run(paying: BonusVectorEnv, steps: int, seed: int) -> list[Any]:
        random = np.random.default_rng(seed)
        return [paying.step(random.integers(2, size=2))[1] for _ in range(steps)]

    def make() -> BonusVectorEnv:
        return BonusVectorEnv(DeepSeaVector(2, 4), ExactCounts())

    first, second = make(), make()
    first.reset()
    second.reset()
    run(first, 6, 0)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(run(first, 9, 1), run(second, 9, 1))


def test_coverage_counts_cells() -> None:
    visits = Visits((2, 2), reachable=3)
    visits.add(np.array([[0, 0], [0, 0], [1, 1]]))
    assert visits.counts.tolist() == [[2, 0], [0, 1]]
    assert visits.coverage == pytest.approx(2 / 3)
    assert 0 < visits.evenness < 1
    again = Visits((2, 2), reachable=3)
    again.load_state_dict(visits.state_dict())
    assert (again.counts == visits.counts).all()
    with pytest.raises(UserError, match="cells"):
        visits.add(np.zeros((3, 1), int))


def test_steps_to_success_are_censored_by_the_budget() -> None:
    ends, success = list(range(10, 110, 10)), [0, 0, 1, 0, 1, 1, 1, 1, 1, 1]
    assert first_success(ends, success, 500) == 30
    assert first_success(ends, [0] * 10, 500) == 500
    assert steps_to_share(ends, success, 500, share=0.5, window=4) == 50
    assert steps_to_share(ends, [0] * 10, 500, window=4) == 500
    assert steps_to_share(ends, success, 500, window=100) == 500
    # Whole rollouts may run a little over the budget: what is learnt there is too late.
    assert first_success(ends, success, 20) == steps_to_share(ends, success, 20, window=4) == 20
    assert regret([0.0, 1.0], 1.0) == 0.5


def test_wrong_environments_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="size"):
        DeepSea(1)
    with pytest.raises(UserError, match="makers"):
        SeededVectorEnv([])
