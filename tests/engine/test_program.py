from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from limbeck.engine import OptimizerSettings, Phase, run_program
from limbeck.errors import UserError
from limbeck.objectives import KL, CrossEntropy, FeatureMSE
from limbeck.sources import EMA, Live, Snapshot
from tests.engine.helpers import BATCHES, Cut, Die, equal, loader, network, objective

FAST = OptimizerSettings(lr=0.05)


def phases(cut: tuple[str, Callback] | None = None, shared: Any = None) -> list[Phase]:
    """Features first, then everything with a new head, then against the earlier self; one loader for all."""
    shared = shared if shared is not None else loader()

    def new_head(student: nn.Module) -> None:
        nn.init.normal_(student[4].weight)

    program = [
        Phase(
            "features", FeatureMSE(student="mid", teacher="mid"), shared, epochs=2, optimizer=FAST,
            teacher=Live(network(9), taps={"mid": "1"}), taps={"mid": "1"}, trainable=["0.*", "1.*"],
        ),
        Phase("labels", objective(), shared, steps=6, teacher=Live(network(9)), optimizer=FAST, begin=new_head),
        Phase("self", KL() + CrossEntropy(), shared, epochs=2, teacher=lambda s: EMA(s, 0.5), optimizer=FAST),
    ]  # fmt: skip
    for phase in program:
        if cut is not None and phase.name == cut[0]:
            phase.options = {"callbacks": [cut[1]]}
    return program


def run(out: Path | None = None, resume: bool = False, **options: Any) -> tuple[nn.Module, Any]:
    student = network(1)
    program = phases(options.pop("cut", None))
    settings = {"checkpoint_seconds": 0.0, "log_every": 1, "accelerator": "cpu", **options}
    return student, run_program(student, program, out=out, resume=resume, seed=7, **settings)


def test_phases_run_in_order_and_hand_the_student_over() -> None:
    student, histories = run()
    assert list(histories) == ["features", "labels", "self"]
    assert [history.steps for history in histories.values()] == [2 * BATCHES, 6, 2 * BATCHES]
    assert not student.training
    assert not any(part._forward_hooks for part in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_only_what_a_phase_trains_moves() -> None:
    student = network(1)
    student[4].bias.requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    run_program(student, phases()[:1], seed=7, accelerator="cpu")
    assert torch.equal(student[4].weight, before["4.weight"])
    assert not torch.equal(student[0].weight, before["0.weight"])
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["4.bias"]


@pytest.mark.parametrize("name", ["features", "labels", "self"])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_program_that_was_cut_ends_with_the_same_bits(name: str, step: int, tmp_path: Path) -> None:
    student, histories = run()
    with pytest.raises(Cut):
        run(tmp_path, cut=(name, Die(step)))
    again, resumed = run(tmp_path, resume=True)
    assert equal(again.state_dict(), student.state_dict())
    assert {key: h.lines for key, h in resumed.items()} == {key: h.lines for key, h in histories.items()}
    third, finished = run(tmp_path, resume=True)
    assert equal(third.state_dict(), student.state_dict())
    assert {key: h.steps for key, h in finished.items()} == {key: h.steps for key, h in histories.items()}


def test_a_cut_phase_leaves_the_student_as_it_may_learn_and_without_hooks() -> None:
    student = network(1)
    with pytest.raises(Cut):
        run_program(student, phases(("features", Die(3))), accelerator="cpu")
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(part._forward_hooks for part in student.modules())


def test_a_new_program_does_not_take_an_old_one_s_phases_for_its_own(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(Cut):
        run(tmp_path, cut=("features", Die(3)))
    assert not list(tmp_path.rglob("done.json"))
    student, _ = run()
    again, _ = run(tmp_path, resume=True)
    assert equal(again.state_dict(), student.state_dict())


def test_an_earlier_self_is_the_student_as_the_phase_finds_it() -> None:
    student, found = network(1), []

    def earlier(model: nn.Module) -> Snapshot:
        found.append(copy.deepcopy(model.state_dict()))
        return Snapshot(model, every=0)

    program = [
        Phase("one", CrossEntropy(), loader(), epochs=1, optimizer=FAST),
        Phase("two", KL(), loader(), epochs=1, optimizer=FAST, teacher=earlier),
    ]
    run_program(student, program, accelerator="cpu")
    assert len(found) == 1
    assert not equal(found[0], network(1).state_dict())


def test_names_must_differ() -> None:
    with pytest.raises(UserError, match="phases: given .*each with a name of its own"):
        run_program(network(1), [phases()[0], phases()[0]])
    with pytest.raises(UserError, match="one or more phases"):
        run_program(network(1), [])
