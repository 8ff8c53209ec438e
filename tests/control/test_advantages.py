"""Advantages against sums written out, and how they are mixed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.control import RewardMixer
from limbeck.control.advantages import generalised_advantages
from limbeck.control.mixer import Rollout
from limbeck.errors import UserError


def draw(steps: int = 7, environments: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(3, steps, environments, generator=generator, dtype=torch.float64)
    terminated = torch.zeros(steps, environments, dtype=torch.bool)
    truncated = terminated.clone()
    terminated[2, 0] = truncated[4, 1] = True
    return {
        "rewards": floats[0],
        "values": floats[1],
        "next_values": floats[2],
        "terminated": terminated,
        "ended": terminated | truncated,
    }


def by_sums(given: dict[str, Tensor], discount: float, decay: float) -> Tensor:
    """The definition: discounted sum of one-step errors up to the episode's end."""
    steps, environments = given["rewards"].shape
    found = torch.zeros(steps, environments, dtype=torch.float64)
    for index in range(environments):
        for time in range(steps):
            factor = 1.0
            for later in range(time, steps):
                future = 0.0 if given["terminated"][later, index] else discount * given["next_values"][later, index]
                delta = given["rewards"][later, index] + future - given["values"][later, index]
                found[time, index] += factor * delta
                factor *= discount * decay
                if given["ended"][later, index]:
                    break
    return found


def test_advantages_are_the_sums_of_the_definition() -> None:
    given = draw()
    found = generalised_advantages(**given, discount=0.9, decay=0.8)
    torch.testing.assert_close(found, by_sums(given, 0.9, 0.8))


def test_a_time_limit_bootstraps_and_a_termination_does_not() -> None:
    given = draw()
    changed = {**given, "next_values": given["next_values"] + 10.0}
    difference = generalised_advantages(**changed) - generalised_advantages(**given)
    assert difference[2, 0] == 0
    assert difference[4, 1] == pytest.approx(9.9)


def test_nothing_flows_over_the_end_of_an_episode() -> None:
    given = draw()
    changed = {**given, "rewards": given["rewards"].clone()}
    changed["rewards"][3, 0] += 5
    changed["rewards"][5, 1] += 5
    difference = generalised_advantages(**changed) - generalised_advantages(**given)
    assert not difference[:3, 0].any()
    assert not difference[:5, 1].any()


def rollout(heads: int) -> Rollout:
    given = draw()
    values = torch.stack([given["values"], 2 * given["values"]], dim=-1)[..., :heads]
    arrival = torch.stack([given["next_values"], 3 * given["next_values"]], dim=-1)[..., :heads]
    bonuses = torch.rand(7, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Rollout(given["rewards"], bonuses, values, arrival, arrival + 1.0, given["terminated"], given["ended"])


def test_one_stream_is_the_advantage_of_the_sum() -> None:
    lived = rollout(1)
    found, targets = RewardMixer(0.5, normalise=False).advantages(lived, discount=0.9, decay=0.8)
    given = draw() | {"rewards": lived.extrinsic + 0.5 * lived.intrinsic}
    torch.testing.assert_close(found, by_sums(given, 0.9, 0.8))
    torch.testing.assert_close(targets[..., 0], found + lived.values[..., 0])


@pytest.mark.parametrize("episodic", [True, False])
def test_two_streams_are_two_advantages_and_the_bonus_may_run_over_ends(episodic: bool) -> None:
    lived = rollout(2)
    mixer = RewardMixer(0.5, streams="two", episodic=episodic, normalise=False, intrinsic_discount=0.7)
    found, targets = mixer.advantages(lived, discount=0.9, decay=0.8)
    never = torch.zeros_like(lived.ended)
    inner = {
        "rewards": lived.intrinsic,
        "values": lived.values[..., 1],
        "next_values": (lived.arrival_values if episodic else lived.seen_values)[..., 1],
        "terminated": lived.terminated if episodic else never,
        "ended": lived.ended if episodic else never,
    }
    outer = by_sums(draw(), 0.9, 0.8)
    torch.testing.assert_close(found, outer + 0.5 * by_sums(inner, 0.7, 0.8))
    torch.testing.assert_close(targets[..., 1], by_sums(inner, 0.7, 0.8) + lived.values[..., 1])


def test_the_mixer_normalises_and_keeps_its_state() -> None:
    mixer, other = RewardMixer(), RewardMixer()
    bonuses = torch.rand(50, 2) * 40
    scaled = mixer.scaled(bonuses)
    assert float(scaled.max()) < 5
    other.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(other.scaled(bonuses), mixer.scaled(bonuses), rtol=0, atol=0)
    other.load_state_dict(RewardMixer().state_dict())
    assert other.scale is None


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="streams"):
        RewardMixer(streams="three")
    with pytest.raises(UserError, match="episodic"):
        RewardMixer(episodic=False)
    with pytest.raises(UserError, match="one shape"):
        generalised_advantages(**(draw() | {"values": torch.zeros(3, 2)}))
