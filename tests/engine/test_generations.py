"""A chain of generations: fresh networks, frozen ancestors, one answer per sample, and the same bits after a cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Generations, OptimizerSettings
from limbeck.errors import UserError
from limbeck.objectives import KL, CrossEntropy, Objective
from limbeck.sources import Average, Live, Source
from tests.engine.helpers import BATCHES, INPUT, TARGET, Cut, Die, equal, loader, network

FAST = OptimizerSettings(lr=0.05)


def fresh(number: int) -> nn.Module:
    """Draws from the global generator, which the chain seeds."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


def mixed() -> Objective:
    return 0.5 * CrossEntropy() + 0.5 * KL(temperature=2.0)


def chain(**options: Any) -> Generations:
    given = {"epochs": 2, "optimizer": FAST, "accelerator": "cpu", "seed": 5, **options}
    return Generations(given.pop("fresh", fresh), given.pop("train", loader()), **given)


def grown(count: int = 3, **options: Any) -> Generations:
    made = chain(**options)
    while made.number < count:
        made.grow(mixed() if made.number else CrossEntropy())
    return made


def test_every_generation_begins_anew_and_the_same_way_again() -> None:
    starts: list[dict[str, torch.Tensor]] = []

    def noted(number: int) -> nn.Module:
        made = fresh(number)
        starts.append({name: value.clone() for name, value in made.state_dict().items()})
        return made

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = grown(fresh=noted)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(equal(a, b) for a, b in ((starts[0], starts[1]), (starts[1], starts[2])))
    torch.rand(7)
    other = grown(fresh=noted)
    assert all(equal(a.state_dict(), b.state_dict()) for a, b in zip(one.networks, other.networks, strict=True))
    assert not equal(grown(1, seed=6).networks[0].state_dict(), one.networks[0].state_dict())
    assert [history.steps for history in one.histories.values()] == [2 * BATCHES] * 3


def test_the_teacher_is_the_newest_and_does_not_move() -> None:
    made = grown(2)
    parent = made.networks[-1]
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    teacher = made.teacher(("logits",))
    assert teacher is not None
    batch = {"input": INPUT, "id": torch.arange(50)}
    with torch.no_grad():
        assert torch.equal(teacher(batch, ["logits"])["logits"], parent(INPUT))
    child = made.grow(mixed())
    # BatchNorm of a woken teacher would have gone on learning its statistics.
    assert equal(parent.state_dict(), before)
    assert not parent.training
    assert not child.training
    assert all(parameter.grad is None for parameter in parent.parameters())
    assert len(child.state_dict()) == len(before)


def test_a_teacher_asked_once_gives_the_same_networks() -> None:
    calls: list[int] = []

    def counted(ancestors: Sequence[nn.Module]) -> Source:
        def forward(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            calls.append(len(batch["id"]))
            return {"logits": model(batch["input"])}

        return Live(ancestors[-1], forward=forward)

    # Without BatchNorm: a bias before it has no gradient but the noise of rounding, which Adam takes for one.
    plain = {"fresh": lambda number: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))}
    live = grown(3, **plain)
    cached = grown(3, cached=True, teacher=counted, **plain)
    assert sum(calls) == 2 * len(INPUT)
    for one, other in zip(live.networks, cached.networks, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_attempts_leave_the_chain_as_it_is_and_begin_where_growing_does() -> None:
    made = grown(1)
    first = made.attempt(mixed(), "one")
    second = made.attempt(mixed(), "two")
    other = made.attempt(KL(), "soft")
    assert made.number == 1
    assert equal(first.state_dict(), second.state_dict())
    assert not equal(first.state_dict(), other.state_dict())
    assert equal(made.grow(mixed()).state_dict(), first.state_dict())
    assert made.adopt(other) is made.networks[2]
    assert set(made.histories) == {
        "generation-0", "generation-1", "generation-1-one", "generation-1-two", "generation-1-soft",
    }  # fmt: skip


def test_ancestors_may_be_given_and_all_may_teach() -> None:
    seen: list[int] = []

    def everyone(ancestors: Sequence[nn.Module]) -> Source:
        seen.append(len(ancestors))
        return Average([Live(one) for one in ancestors])

    made = grown(4, ancestors=[network(1).train(), network(2)], teacher=everyone)
    assert seen == [2, 3]
    assert list(made.histories) == ["generation-2", "generation-3"]
    report = made.report(lambda one: {"training": float(one.training)})
    assert report == [{"generation": float(number), "training": 0.0} for number in range(4)]


def test_the_first_generation_has_no_teacher() -> None:
    with pytest.raises(UserError, match="teacher: given none; allowed: a source of logits"):
        chain().grow(mixed())


def test_a_network_that_was_an_ancestor_is_refused() -> None:
    same = network(1)
    made = chain(fresh=lambda number: same, cached=True)
    made.grow(CrossEntropy())
    with pytest.raises(UserError, match="fresh: given a network that shares weights with generation 0"):
        made.grow(mixed())


def test_answers_about_augmented_samples_are_not_kept() -> None:
    augmented = TensorLoader({"input": INPUT, "target": TARGET}, 16, transform=lambda batch: batch)
    with pytest.raises(UserError, match="cached: given True; allowed: False for a loader with a transform"):
        chain(train=augmented, cached=True)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_chain_that_was_cut_ends_with_the_same_bits(where: int, cached: bool, tmp_path: Path) -> None:
    whole = grown(3, cached=cached)
    options = {"out": tmp_path, "checkpoint_seconds": 0.0, "cached": cached}
    broken = grown(where, **options)
    broken.options["callbacks"] = [Die(5)]
    with pytest.raises(Cut):
        broken.grow(mixed() if where else CrossEntropy())
    resumed = grown(3, resume=True, **options)
    assert all(equal(a.state_dict(), b.state_dict()) for a, b in zip(whole.networks, resumed.networks, strict=True))
    again = grown(3, resume=True, **options)
    assert all(equal(a.state_dict(), b.state_dict()) for a, b in zip(whole.networks, again.networks, strict=True))


def test_a_new_chain_does_not_take_an_old_ones_generations_for_its_own(tmp_path: Path) -> None:
    grown(3, out=tmp_path)
    chain(out=tmp_path)
    assert not list(tmp_path.rglob("done.json"))


def test_a_chain_is_not_resumed_under_another_objective(tmp_path: Path) -> None:
    grown(2, out=tmp_path)
    grown(2, out=tmp_path, resume=True)
    other = grown(1, out=tmp_path, resume=True)
    with pytest.raises(UserError, match="objective of phase generation-1: given another than the one begun"):
        other.grow(0.9 * CrossEntropy() + 0.1 * KL(temperature=2.0))
    longer = chain(out=tmp_path, resume=True, epochs=7)
    with pytest.raises(UserError, match="epochs of phase generation-0"):
        longer.grow(CrossEntropy())
