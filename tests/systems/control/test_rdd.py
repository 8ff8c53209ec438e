"""Tests of the system rdd: the law of the mean, the read-outs, the floor, and what the experiments measure."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.control import Replay, Visits
from limbeck.control.networks import orthogonal, perceptron
from limbeck.errors import UserError
from limbeck.experiment.base import Exact
from limbeck.systems.control.rdd import counts, exploration
from limbeck.systems.control.rdd.counts import TableMean, judge, visit_numbers
from limbeck.systems.control.rdd.doorkey import VIEW, Progress, doorkey, one_hot_view
from limbeck.systems.control.rdd.experiment import EXPERIMENTS
from limbeck.systems.control.rdd.method import RDD, exact_mean_bonus, expected_bonus, noise_floor
from limbeck.systems.registry import read_card


def test_exact_claims_hold() -> None:
    claims = [claim for kind in EXPERIMENTS.values() for claim in kind.claims if isinstance(claim, Exact)]
    assert len(claims) == 3
    for claim in claims:
        assert claim.check() <= claim.tolerance, claim.text


def test_the_bonus_of_the_exact_mean_is_what_the_law_expects() -> None:
    for visits in (2, 16):
        mean, variance = expected_bonus(torch.tensor(float(visits)), sigma=3.0)
        found = 9 * exact_mean_bonus(visits, size=32, sigma=3.0, repeats=5000)
        assert float(found.mean()) == pytest.approx(float(mean), rel=0.02)
        assert float(found.var()) == pytest.approx(float(variance) / 32, rel=0.1)


def test_a_constant_step_forgets() -> None:
    state = torch.ones(1, 1)
    bonuses = {}
    for step in (None, 0.3):
        table = TableMean(step, seed=0, size=4000)
        for _ in range(200):
            table.update(state)
        bonuses[step] = float(table.bonus(state))
    assert bonuses[None] == pytest.approx(1 / 200, rel=0.1)
    assert bonuses[0.3] == pytest.approx(noise_floor(0.3), rel=0.1)


def test_least_squares_on_a_table_counts() -> None:
    visits = torch.tensor([1, 4, 16, 64, 256])
    reward = RDD(
        (5,),
        size=256,
        network=lambda: orthogonal(perceptron(5, (64,), 256)),
        learning=Replay(5e-3, steps=4, batch_size=8),
        seed=1,
    )
    stream = torch.repeat_interleave(torch.arange(5), visits)
    order = torch.randperm(len(stream), generator=torch.Generator().manual_seed(0))
    for part in stream[order].split(4):
        reward.update(torch.eye(5)[part])
    counted = reward.pseudo_count(torch.eye(5))
    assert np.polyfit(visits.log().numpy(), counted.log().numpy(), 1)[0] == pytest.approx(1, abs=0.1)
    assert (counted / visits).log().abs().max() < 0.5


def test_an_unseen_state_pays_about_the_square_of_the_centre() -> None:
    for centre in (1.0, 2.0):
        reward = RDD((5,), centre=centre, network=lambda: torch.nn.Linear(5, 64))
        assert float(reward.bonus(torch.eye(5)).mean()) == pytest.approx(centre**2, rel=0.4)


def test_pseudo_counts_follow_every_read_out_that_counts() -> None:
    plain = RDD((5,), sigma=0.5)
    for readout in ("normalised", "root"):
        other = RDD((5,), sigma=0.5, readout=readout)
        torch.testing.assert_close(other.pseudo_count(torch.eye(5)), plain.pseudo_count(torch.eye(5)))
    for wrong in (RDD((5,), readout="sample"), RDD((5,), sigma=0.0)):
        with pytest.raises(UserError, match="readout, sigma"):
            wrong.pseudo_count(torch.eye(5))


def test_the_judge_knows_counters_from_noise() -> None:
    numbers = visit_numbers()
    assert len(numbers) == 100
    assert numbers.min() == 1
    inverse = torch.as_tensor(1 / numbers)
    right = judge(inverse, numbers)
    assert right["slope"] == pytest.approx(-1)
    assert right["spearman"] == pytest.approx(1)
    assert right["spread"] == pytest.approx(0)
    assert right["floor"] == pytest.approx(1 / 2000)
    noise = judge(torch.rand(100, generator=torch.Generator().manual_seed(0)), numbers)
    assert abs(noise["spearman"]) < 0.3
    assert noise["slope_error"] > 0.8
    assert judge(torch.ones(100), numbers)["spearman"] == 0


@pytest.mark.parametrize("kind", [counts.Counts, counts.Coordinates, counts.Digits])
def test_states_are_a_hundred_different_ones(kind: type[counts.Counts]) -> None:
    assert kind("smoke").prepare()["gate"]["passed"]
    states = kind.make_states(3)
    assert len(states) == len(torch.unique(states, dim=0)) == 100


def test_counting_at_smoke_size_separates_the_trainings() -> None:
    bed = counts.Counts("smoke")
    found = {arm: bed.run(arm, 0) for arm in ("untrained", "oracle", "table-mean", "rdd-replay", "rdd-sample-replay")}
    ranks = {arm: outcome.metrics["spearman"] for arm, outcome in found.items()}
    assert ranks["oracle"] == pytest.approx(1)
    assert ranks["table-mean"] > 0.9
    assert ranks["rdd-replay"] > 0.6
    assert ranks["rdd-replay"] > ranks["rdd-sample-replay"] + 0.1
    assert abs(ranks["untrained"]) < 0.3
    assert found["rdd-replay"].pictures


def test_the_view_becomes_one_hot() -> None:
    view = torch.zeros(2, 7, 7, 3, dtype=torch.uint8)
    view[0, 2, 3] = torch.tensor([5, 4, 0])
    hot = one_hot_view(view).reshape(2, 7, 7, 21)
    assert hot.sum() == 2 * 7 * 7 * 3
    assert hot[0, 2, 3].nonzero().flatten().tolist() == [5, 11 + 4, 17]
    assert hot.flatten(1).shape == (2, VIEW)


def test_progress_sees_keys_and_open_doors() -> None:
    world = doorkey(5, 2, seed=0)
    world.reset()
    progress = Progress(world, 5)
    view = np.full((2, 7, 7, 3), 1, dtype=np.uint8)
    view[0, 3, 6] = (5, 0, 0)
    view[1, 2, 2] = (4, 0, 0)
    progress(view, {"_final_obs": np.array([True, True])}, np.array([True, True]))
    assert progress.rates == {"key": [1.0, 0.0], "door": [0.0, 1.0]}
    assert progress.visits.counts.sum() == 2
    assert len(progress.views) == 2


@pytest.mark.parametrize("name", ["deep_sea", "minigrid"])
def test_exploration_at_smoke_size_is_repeatable_and_counts_only_the_world(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exploration.Exploration, "smoke_budget", 2048)
    bed = EXPERIMENTS[name]("smoke")
    first, second = bed.run("rdd", 0), bed.run("rdd", 0)
    assert first.metrics == second.metrics
    assert first.metrics["final_return"] <= 1
    assert 0 < first.metrics["first_success"] <= 2048
    assert first.pictures
    assert bed.run("rdd", 1).metrics != first.metrics


def test_ranks_of_bonuses_tell_counts_and_unseen_cells() -> None:
    visits = Visits((3, 3))
    visits.counts[np.tril_indices(3)] = [9, 4, 3, 2, 1, 0]

    def ranks(bonuses: list[float]) -> dict[str, float]:
        paid = torch.zeros(9)
        paid[[0, 3, 4, 6, 7, 8]] = torch.tensor(bonuses)
        agent: Any = SimpleNamespace(intrinsic=SimpleNamespace(bonus=lambda states: states @ paid))
        return exploration.bonus_ranks(agent, visits)

    assert ranks([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == {"count_rank": pytest.approx(1), "unseen_rank": 1.0}
    assert ranks([0.0, 1.0, 2.0, 3.0, 4.0, 0.5])["unseen_rank"] == pytest.approx(0.2)
    assert ranks([7.0] * 6) == {"count_rank": 0.0}
    assert ranks([9.0, 1.0, 2.0, 3.0, 4.0, 5.0])["count_rank"] == pytest.approx(1), "the first cell does not count"


def test_deep_sea_in_small_is_solved_by_the_oracle() -> None:
    bed = EXPERIMENTS["deep_sea"]("smoke")
    assert bed.run("count", 0).metrics["coverage"] == 1


def test_the_card_and_the_page() -> None:
    folder = Path(counts.__file__).parent
    assert read_card(folder / "card.toml").slug == "rdd"
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
