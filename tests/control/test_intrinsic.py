"""What every intrinsic reward must do, asked of each."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.control import (
    ExactCounts,
    HashCounts,
    IntrinsicReward,
    NoBonus,
    Replay,
    RunningMoments,
    coin_flips,
    conv_network,
    drnd,
    rnd,
)
from limbeck.errors import UserError
from limbeck.systems.control.rdd.method import RDD

SHAPE = (6,)
KINDS: dict[str, Callable[[], IntrinsicReward]] = {
    "none": NoBonus,
    "exact": ExactCounts,
    "hash": lambda: HashCounts(6, 8),
    "rnd": lambda: rnd(SHAPE, size=8),
    "rnd-whitened": lambda: rnd(SHAPE, size=8, moments=RunningMoments(SHAPE, clip=5.0), share=0.5),
    "drnd": lambda: drnd(SHAPE, size=8, members=3),
    "coin": lambda: coin_flips(SHAPE, size=8),
    "rdd": lambda: RDD(SHAPE, size=8),
    "rdd-root": lambda: RDD(SHAPE, size=8, readout="root"),
    "rdd-sample": lambda: RDD(SHAPE, size=8, readout="sample"),
    "rdd-replay": lambda: RDD(SHAPE, size=8, learning=Replay(capacity=20, batch_size=8, steps=2)),
}
PURE = [name for name in KINDS if name != "rdd-sample"]


def states(rows: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed)).round(decimals=1)


def live(reward: IntrinsicReward, begin: int, end: int) -> None:
    for step in range(begin, end):
        seen = states(seed=step % 4)
        reward.observe(seen)
        reward.update(seen)


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_a_bonus_is_one_finite_number_per_state_without_gradient(kind: str) -> None:
    reward = KINDS[kind]()
    live(reward, 0, 3)
    found = reward.bonus(states())
    assert found.shape == (16,)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.isfinite(found).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("kind", PURE)
def test_reading_changes_nothing(kind: str) -> None:
    reward, other = KINDS[kind](), KINDS[kind]()
    live(reward, 0, 3)
    live(other, 0, 3)
    before = reward.bonus(states())
    for _ in range(3):
        torch.testing.assert_close(reward.bonus(states()), before, rtol=0, atol=0)
    live(reward, 3, 5)
    live(other, 3, 5)
    torch.testing.assert_close(reward.bonus(states()), other.bonus(states()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_bit_for_bit(kind: str) -> None:
    whole, first, second = (KINDS[kind]() for _ in range(3))
    live(whole, 0, 8)
    live(first, 0, 4)
    second.load_state_dict(through_disk(first.state_dict()))
    live(second, 4, 8)
    torch.testing.assert_close(second.bonus(states(seed=9)), whole.bonus(states(seed=9)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_kept_is_not_changed_by_what_follows(kind: str) -> None:
    reward, other = KINDS[kind](), KINDS[kind]()
    live(reward, 0, 3)
    kept, before = reward.state_dict(), reward.bonus(states())
    kept = through_disk(kept) if kind == "rdd-sample" else kept
    live(reward, 3, 6)
    other.load_state_dict(kept)
    if kind in PURE:
        torch.testing.assert_close(other.bonus(states()), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("none", "rdd-sample")])
def test_what_was_visited_often_pays_less(kind: str) -> None:
    reward = KINDS[kind]()
    known, new = 2 * torch.eye(6)[:2], 2 * torch.eye(6)[4:]
    reward.observe(2 * torch.eye(6))
    for _ in range(400):
        reward.update(known)
    assert reward.bonus(new).mean() > 1.2 * reward.bonus(known).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_are_refused(kind: str) -> None:
    spoilt = states()
    spoilt[3, 1] = torch.nan
    reward = KINDS[kind]()
    for use in (reward.bonus, reward.update):
        with pytest.raises(UserError, match=r"not finite in rows \[3\]"):
            use(spoilt)
    with pytest.raises(UserError, match="batch of states"):
        reward.bonus(torch.zeros(6))
    with pytest.raises(UserError, match="states: given ndarray"):
        reward.bonus(torch.zeros(2, 6).numpy())  # type: ignore[arg-type]


def test_frozen_targets_are_in_the_state_and_not_in_the_optimiser() -> None:
    reward = RDD(SHAPE, size=8)
    trained = {id(weight) for group in reward.learning.optimizer.param_groups for weight in group["params"]}  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in reward.target.state_dict().items()}
    assert before
    assert not trained & {id(weight) for weight in reward.target.parameters()}
    live(reward, 0, 5)
    for name, value in reward.state_dict()["target"].items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in reward.target.parameters())
    assert not reward.target.train().training


def test_images_go_through_convolutions() -> None:
    for side in (7, 36):
        reward = RDD((side, side, 3), size=8, network=lambda side=side: conv_network((side, side, 3), 8))
        images = torch.rand(4, side, side, 3)
        reward.update(images)
        assert reward.bonus(images).shape == (4,)
    with pytest.raises(UserError, match="shape"):
        conv_network((7, 7))
