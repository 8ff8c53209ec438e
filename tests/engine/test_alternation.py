"""Forms that label for each other in turn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Alternation, Form, HalfCycle, OptimizerSettings
from limbeck.errors import UserError
from limbeck.objectives import ScoreMSE
from limbeck.signals import Batch
from limbeck.sources import PseudoLabels, Source
from tests.engine.helpers import Cut, DieAfter

INPUT = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def score(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"score": model(batch["input"]).squeeze(-1)}


def fresh(turn: HalfCycle) -> nn.Module:
    return nn.Linear(4, 1)


def form(name: str, initial: Any = fresh, epochs: int = 2, **more: Any) -> Form:
    return Form(
        name,
        initial,
        ScoreMSE,
        lambda seed: TensorLoader({"input": INPUT}, 4, seed=seed),
        lambda: TensorLoader({"input": INPUT}, 5, shuffle=False),
        epochs=epochs,
        optimizer=OptimizerSettings("sgd", lr=0.1, schedule="constant", weight_decay=0.0),
        forward=score,
        **more,
    )


def starts(count: int = 1) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(nn.Linear(4, 1))
    return made


def alternation(members: int = 1, start: Sequence[nn.Module] | None = None, **options: Any) -> Alternation:
    forms = [[form("cross"), form("bi")] for _ in range(members)]
    return Alternation(forms, start or starts(members), accelerator="cpu", **options)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_turns_come_in_order_and_each_form_learns_from_the_one_before() -> None:
    store = PseudoLabels()
    done = [(turn.name, network) for turn, network in alternation(labels=store).run(2)]
    assert [name for name, _ in done] == ["cycle-1-cross-0", "cycle-1-bi-0", "cycle-2-cross-0", "cycle-2-bi-0"]
    assert [(r.cycle, r.producer) for r in store.rounds()] == [(1, "bi-0"), (1, "cross-0"), (2, "bi-0"), (2, "cross-0")]
    ids = {"id": torch.arange(12)}
    labellers = {(1, "bi-0"): starts()[0], (1, "cross-0"): done[0][1], (2, "bi-0"): done[1][1]}
    for (cycle, producer), network in labellers.items():
        said = store.read(cycle, producer)(ids, ("score",))["score"]
        torch.testing.assert_close(said, network(INPUT).squeeze(-1).detach())


def test_partners_learn_the_mean_of_their_labels() -> None:
    seen: list[torch.Tensor] = []

    def combine(labels: Sequence[Source]) -> Source:
        from limbeck.engine.alternation import mean_of

        mean = mean_of(labels)
        seen.append(torch.as_tensor(mean({"id": torch.arange(12)}, ("score",))["score"]))
        return mean

    first, second = starts(2)
    list(alternation(2, [first, second], combine=combine).run(1))
    torch.testing.assert_close(seen[0], ((first(INPUT) + second(INPUT)) / 2).squeeze(-1).detach())


def test_the_start_stays_as_it_is_and_is_not_handed_out_to_be_trained() -> None:
    start = starts()
    before = weights(start[0]).clone()
    list(alternation(start=start).run(1))
    assert torch.equal(weights(start[0]), before)
    with pytest.raises(UserError, match="initial"):
        list(Alternation([[form("bi", lambda turn: turn.previous)]], start, accelerator="cpu").run(1))
    list(Alternation([[form("bi", lambda turn: copy.deepcopy(turn.previous))]], start, accelerator="cpu").run(1))


def test_a_seed_decides_everything_and_turns_draw_different_heads() -> None:
    first, again = ([weights(n) for _, n in alternation(seed=3).run(2)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn: list[torch.Tensor] = []

    def noted(turn: HalfCycle) -> nn.Module:
        network = nn.Linear(4, 1)
        drawn.append(weights(network).clone())
        return network

    list(Alternation([[form("cross", noted), form("bi", noted)]], starts(), accelerator="cpu").run(2))
    assert len({tuple(one.tolist()) for one in drawn}) == 4


@pytest.mark.parametrize("step", [2, 9, 15])
def test_a_cut_run_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = [weights(network) for _, network in alternation().run(2)]
    with pytest.raises(Cut):
        for _ in alternation(
            out=tmp_path, labels=PseudoLabels(tmp_path / "labels"), callbacks=[DieAfter(step)], checkpoint_seconds=0.0
        ).run(2):
            pass
    resumed = alternation(out=tmp_path, labels=PseudoLabels(tmp_path / "labels"), resume=True)
    assert all(torch.equal(a, weights(b)) for a, (_, b) in zip(whole, resumed.run(2), strict=True))


def test_without_resume_an_older_runs_labels_are_forgotten(tmp_path: Path) -> None:
    list(alternation(labels=PseudoLabels(tmp_path)).run(1))
    list(alternation(start=starts(2)[1:], labels=PseudoLabels(tmp_path)).run(1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="members"):
        Alternation([[form("cross"), form("bi")], [form("bi"), form("cross")]], starts(2))
    with pytest.raises(UserError, match="start"):
        Alternation([[form("bi")]], starts(2))
    with pytest.raises(UserError, match="cycles"):
        list(alternation().run(0))
