"""Views in a training: shadows in full precision, quantised forward passes, points that learn, exact resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.objectives import KL, CrossEntropy
from limbeck.quantization import (
    LearnedPoints,
    Scaling,
    UniformWeights,
    first_and_last,
    quantile_points,
    quantise,
    weights_to_quantise,
)
from limbeck.sources import Live
from tests.engine.helpers import INPUT, TARGET, loader, network

SGD = OptimizerSettings("sgd", lr=0.05, weight_decay=0.0, schedule="constant")


def plain(seed: int = 1) -> nn.Sequential:
    """Without dropout, so that a hand-written loop can follow."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def quantised(model: nn.Module, bits: int, **options: Any) -> dict[str, Tensor]:
    return {name: quantise(value, Scaling(), count=2**bits, **options) for name, value in model.named_parameters()}


def test_a_step_takes_the_gradient_at_the_quantised_weights_and_moves_the_shadow() -> None:
    student, by_hand = plain(), plain().train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.05, momentum=0.9, nesterov=True)
    for batch in loader():
        twin = copy.deepcopy(by_hand).train()
        with torch.no_grad():
            for name, value in quantised(by_hand, 2).items():
                twin.get_parameter(name).copy_(value)
        twin.zero_grad()
        nn.functional.cross_entropy(twin(batch["input"]), batch["target"]).backward()
        for own, seen in zip(by_hand.parameters(), twin.parameters(), strict=True):
            own.grad = seen.grad
        optimizer.step()
        for own, seen in zip(by_hand.buffers(), twin.buffers(), strict=True):
            own.copy_(seen)
    distiller = Distiller(student, CrossEntropy(), optimizer=SGD, weights=UniformWeights(student, 2))
    fit(distiller, loader(), epochs=1, accelerator="cpu")
    for (name, ours), theirs in zip(student.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    # The shadow was never rounded.
    assert len(student[0].weight.unique()) > 100
    finished = distiller.finish()
    for name, value in quantised(by_hand, 2).items():
        torch.testing.assert_close(finished.get_parameter(name), value, rtol=1e-5, atol=1e-5)
        assert len(finished.get_parameter(name).unique()) <= 4
    assert distiller.finish() is finished


def test_validation_sees_the_quantised_student_and_the_shadow_survives_it() -> None:
    student = network(1)
    distiller = Distiller(student, CrossEntropy(), optimizer=SGD, weights=UniformWeights(student, 2))
    seen: list[int] = []

    def validate(module: Any) -> dict[str, float]:
        seen.append(len(module.student[0].weight.unique()))
        # A look through the distiller inside the view does not quantise twice.
        inside = module.student_signals({"input": INPUT, "id": torch.arange(50)})["logits"]
        return {"same": float(torch.equal(inside, module.student(INPUT)))}

    lines = fit(distiller, loader(), epochs=2, validate=validate, accelerator="cpu").lines
    assert seen == [4, 4]
    assert [line["validation/same"] for line in lines if "validation/same" in line] == [1, 1]
    assert len(student[0].weight.unique()) > 100


def test_an_error_in_a_step_leaves_the_shadow_in_place() -> None:
    student = network(1)
    distiller = Distiller(student, CrossEntropy(), weights=UniformWeights(student, 2))
    before = [id(value) for value in student.parameters()]
    with pytest.raises(RuntimeError):
        distiller.student_signals({"input": torch.zeros(2, 9), "id": torch.arange(2)})
    assert [id(value) for value in student.parameters()] == before
    assert isinstance(student[0].weight, nn.Parameter)


def test_an_ordinary_trainer_trains_it_too() -> None:
    made = []
    for run in ("fit", "trainer"):
        student = plain()
        distiller = Distiller(student, CrossEntropy(), optimizer=SGD, weights=UniformWeights(student, 4))
        if run == "fit":
            fit(distiller, loader(), epochs=2, accelerator="cpu")
        else:
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet).fit(distiller, loader())
        made.append(torch.cat([value.detach().flatten() for value in distiller.finish().parameters()]))
    assert torch.equal(*made)


@pytest.mark.parametrize("kind", ["uniform", "points", "both"])
def test_a_resumed_training_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    def fresh() -> Distiller:
        student = network(1)
        view = UniformWeights(student, 3, stochastic=True) if kind == "uniform" else LearnedPoints(student, 3)
        frozen = {"trainable": ()} if kind == "points" else {}
        return Distiller(student, CrossEntropy(), optimizer=OptimizerSettings(lr=0.01), weights=view, **frozen)

    class Stop(Exception):
        pass

    def stop(module: Any) -> dict[str, float]:
        if module.steps_done > 8:
            raise Stop
        return {"steps": float(module.steps_done)}

    straight, cut, resumed = fresh(), fresh(), fresh()
    fit(straight, loader(), epochs=4, accelerator="cpu")
    with pytest.raises(Stop):
        fit(cut, loader(), epochs=4, accelerator="cpu", out=tmp_path, validate=stop)
    fit(resumed, loader(), epochs=4, accelerator="cpu", out=tmp_path, resume=True)
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_points_learn_while_weights_stay_and_statistics_follow() -> None:
    student = plain()
    weights = [value.clone() for value in student.parameters()]
    view = LearnedPoints(student, 2)
    points = [value.clone() for value in view.points]
    distiller = Distiller(
        student,
        KL(2.0),
        Live(copy.deepcopy(student)),
        weights=view,
        trainable=(),
        optimizer=OptimizerSettings("sgd", lr=1e-2, weight_decay=0.0),
    )
    fit(distiller, loader(), epochs=3, accelerator="cpu")
    assert all(torch.equal(own, before) for own, before in zip(student.parameters(), weights, strict=True))
    assert any(not torch.equal(own, before) for own, before in zip(view.points, points, strict=True))
    assert int(student[1].num_batches_tracked) == 12
    assert distiller.training
    assert student[1].training


def test_without_such_a_view_frozen_statistics_stay() -> None:
    student = plain()
    head = Distiller(student, CrossEntropy(), trainable=("3.*",), weights=UniformWeights(student, 4))
    fit(head, loader(), epochs=1, accelerator="cpu")
    assert int(student[1].num_batches_tracked) == 0


def test_learning_points_lowers_the_loss_that_it_is_given() -> None:
    student = plain()
    fit(
        Distiller(student, CrossEntropy(), optimizer=OptimizerSettings(lr=0.05)), loader(), epochs=10, accelerator="cpu"
    )
    teacher = Live(copy.deepcopy(student))
    optimizer = OptimizerSettings("sgd", lr=1e-2, weight_decay=0.0)
    batch = {"input": INPUT, "target": TARGET, "id": torch.arange(50)}

    def gap(view: LearnedPoints) -> float:
        distiller = Distiller(student, KL(), teacher, weights=view, trainable=()).eval()
        with torch.no_grad():
            return float(
                distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)["kl"]
            )

    view = LearnedPoints(student, 2)
    before = gap(view)
    fit(
        Distiller(student, KL(), teacher, weights=view, trainable=(), optimizer=optimizer),
        loader(),
        epochs=15,
        accelerator="cpu",
    )
    assert gap(view) < 0.9 * before


def test_learned_points_begin_at_quantiles_or_evenly() -> None:
    student = plain()
    at_quantiles, even = LearnedPoints(student, 3), LearnedPoints(student, 3, start="uniform")
    torch.testing.assert_close(at_quantiles.points[0], quantile_points(student[0].weight, 8, Scaling()))
    uniform = UniformWeights(student, 3)
    for name, value in even.tensors(student).items():
        torch.testing.assert_close(value, uniform.tensors(student)[name])


def test_patterns_leave_tensors_in_full_precision_and_say_which() -> None:
    student = network(1)
    view = UniformWeights(student, 2, skip=("1.*", "*.bias"))
    assert view.names == ["0.weight", "4.weight"]
    assert view.skipped == ["0.bias", "1.weight", "1.bias", "4.bias"]
    assert set(view.tensors(student)) == {"0.weight", "4.weight"}
    assert first_and_last(student) == ["0.weight", "4.bias"]


def test_stochastic_rounding_ends_with_training() -> None:
    student = network(1)
    view = UniformWeights(student, 2, stochastic=True)
    first, second = (view.tensors(student)["0.weight"] for _ in range(2))
    assert not torch.equal(first, second)
    view.eval()
    torch.testing.assert_close(view.tensors(student)["0.weight"], quantised(student, 2)["0.weight"])


def test_gradient_norms_of_a_view_without_learning_weights() -> None:
    student = plain()
    distiller = Distiller(
        student, CrossEntropy(), weights=LearnedPoints(student, 2), trainable=(), log_gradient_norms=True
    )
    lines = fit(distiller, loader(), epochs=1, accelerator="cpu", log_every=1).lines
    assert all(line["gradient_norm/cross_entropy"] > 0 for line in lines)


def test_mistakes_are_named() -> None:
    student = network(1)
    with pytest.raises(UserError, match="skip"):
        UniformWeights(student, 4, skip=("conv*",))
    with pytest.raises(UserError, match="something to quantise"):
        weights_to_quantise(student, ("*",))
    with pytest.raises(UserError, match="bits"):
        UniformWeights(student, 0)
    with pytest.raises(UserError, match="gradient"):
        UniformWeights(student, 2, gradient="complicated")
    with pytest.raises(UserError, match="start"):
        LearnedPoints(student, 2, start="percentiles")
    with pytest.raises(UserError, match="bits"):
        LearnedPoints(student, {"0.weight": 4})
    with pytest.raises(UserError, match="another network"):
        UniformWeights(student, 2).tensors(nn.Linear(2, 2))
    checkpointed = network(1)
    checkpointed.is_gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(UserError, match="checkpointing"):
        Distiller(checkpointed, CrossEntropy(), weights=UniformWeights(checkpointed, 2))
