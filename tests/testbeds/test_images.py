"""What holds for every image testbed and regime, at the size ``smoke``."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from limbeck import testbeds
from limbeck.testbeds.images import ImageTestbed

REGIMES = [
    f"{name}:{regime}"
    for name in ("digits", "fashion_mnist", "cifar10")
    for regime in testbeds.testbed_class(name).regimes
]


def smoke(reference: str) -> ImageTestbed:
    made = testbeds.load(reference, size="smoke")
    assert isinstance(made, ImageTestbed)
    return made


@pytest.mark.parametrize("reference", REGIMES)
@pytest.mark.parametrize("size", ["smoke", "full"])
def test_splits_are_disjoint_and_labels_in_range(reference: str, size: testbeds.Size) -> None:
    testbed = testbeds.load(reference, size)
    assert isinstance(testbed, ImageTestbed)
    splits = testbed.splits(seed=1)
    train, validation, test = (set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test))
    assert len(train) == len(splits.train) == testbed.plan.train
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert not set(testbed.teacher_samples().id.tolist()) & (validation | test)
    if not testbed.plan.shared:
        assert not set(testbed.teacher_samples().id.tolist()) & train
    for part in (splits.train, splits.validation, splits.test):
        assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < testbed.num_classes
        assert part.input.dtype == torch.float32


@pytest.mark.parametrize("reference", ["fashion_mnist:few_labels", "cifar10:few_labels", "fashion_mnist:plain"])
def test_only_drawn_training_images_depend_on_the_seed(reference: str) -> None:
    testbed = smoke(reference)
    first, second = testbed.splits(0), testbed.splits(1)
    drawn = not testbed.plan.shared or testbed.plan.drawn
    assert torch.equal(first.train.id, second.train.id) is not drawn
    assert torch.equal(first.train.id, testbed.splits(0).train.id)
    assert torch.equal(first.validation.id, second.validation.id)
    assert torch.equal(first.test.id, second.test.id)


@pytest.mark.parametrize("reference", REGIMES)
def test_gates_pass_even_at_smoke_size(reference: str) -> None:
    gate = smoke(reference).gate()
    assert gate.passed, gate.as_dict()
    assert {check["name"] for check in gate.as_dict()["checks"]} >= {"teacher_accuracy", "teacher_lead"}


def test_a_student_is_its_seed_and_leaves_the_generator_alone() -> None:
    testbed = smoke("digits:plain")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = testbed.student(0), testbed.student(0), testbed.student(1)
    assert torch.equal(torch.rand(3), expected)
    states = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def _teacher_state(folder: str) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", folder)
        return dict(smoke("digits:plain").teacher().state_dict())


def test_processes_side_by_side_train_the_teacher_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_teacher_state, [str(tmp_path)] * 2)
    assert len(list((tmp_path / "teachers").iterdir())) == 1
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_damaged_teacher_is_made_again_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    testbed = smoke("digits:few_labels")
    teacher = testbed.teacher()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    (weights,) = (tmp_path / "teachers").glob("*/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    again = testbed.teacher().state_dict()
    assert weights.read_bytes() == whole
    assert all(torch.equal(value, again[name]) for name, value in teacher.state_dict().items())


def test_evaluation_keeps_the_mode_and_gives_the_metrics() -> None:
    testbed = smoke("digits:plain")
    model = testbed.student(0).train()
    metrics = testbed.evaluate(model, testbed.splits().test)
    assert model.training
    assert {"accuracy", "nll", "ece", "brier", "top5"} <= set(metrics)
    assert metrics == testbed.evaluate(model.eval(), testbed.splits().test)
