"""The sheet's exact checks and pitfalls of quantized-distillation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.experiment import Exact
from limbeck.objectives import CrossEntropy, total
from limbeck.quantization import LearnedPoints, PackedNetwork, first_and_last
from limbeck.sources import Live
from limbeck.systems.compression.quantized_distillation.experiment import ARMS, CLAIMS, MIRRORED, Compact, mirrored
from limbeck.systems.compression.quantized_distillation.method import (
    after_training,
    differentiable_quantization,
    distillation_loss,
    mixed,
    packed,
    quantized_distillation,
)

FAST = OptimizerSettings(lr=0.02, weight_decay=0.0)


def network(seed: int = 0, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def samples(count: int = 192) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, 6, generator=generator)
    return {"input": values, "target": (values[:, :3] * 3).argmax(-1), "id": torch.arange(count)}


def loader(epoch: int = 0) -> TensorLoader:
    return TensorLoader(samples(), 32, seed=epoch)


def trained(epochs: int = 12) -> nn.Sequential:
    student = network()
    fit(Distiller(student, CrossEntropy(), optimizer=FAST), loader(), epochs=epochs, accelerator="cpu")
    return student.eval()


def accuracy(model: nn.Module) -> float:
    data = samples()
    return float((model.eval()(data["input"]).argmax(-1) == data["target"]).double().mean())


# The loss.


@pytest.mark.parametrize("per_row", ["sum", "mean"])
def test_the_loss_is_the_formula_in_both_reductions(per_row: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    batch = {"id": torch.arange(6), "target": torch.tensor([0, 1, 2, 3, 0, 1])}
    loss = total(distillation_loss(per_row=per_row)({"logits": student}, {"logits": teacher}, batch))
    reduction = {"sum": "batchmean", "mean": "mean"}[per_row]
    soft = functional.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction=reduction)
    torch.testing.assert_close(loss, 0.7 * 4 * soft + 0.3 * functional.cross_entropy(student, batch["target"]))


# Method 1.


def test_what_is_finished_packed_and_read_back_is_one_network(tmp_path: Path) -> None:
    student = network()
    distiller = quantized_distillation(student, Live(network(7, 48)), 2, optimizer=FAST)
    fit(distiller, loader(), epochs=2, accelerator="cpu")
    file = packed(distiller).save(tmp_path / "student.safetensors")
    finished = distiller.finish()
    read = PackedNetwork.load(file).write(network(3))
    for (name, ours), theirs in zip(read.state_dict().items(), finished.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for name, weight in read.named_parameters():
        assert all(len(bucket.unique()) <= 4 for bucket in weight.flatten().split(256)), name
    with pytest.raises(UserError, match="not finished yet"):
        packed(distiller)


def test_momentum_and_rounding_stay_apart_small_steps_add_up() -> None:
    # A step far below half a level would be lost, were the quantised weight itself moved.
    student = network()
    slow = quantized_distillation(
        student,
        None,
        2,
        objective=CrossEntropy(),
        optimizer=OptimizerSettings("sgd", lr=1e-3, weight_decay=0.0, schedule="constant"),
    )
    codes = packed(slow).coded["0.weight"].codes.clone()
    before = student[0].weight.detach().clone()
    fit(slow, loader(), epochs=20, accelerator="cpu")
    step = float((before.max() - before.min()) / 3)
    assert float((student[0].weight - before).abs().max()) < step
    assert not torch.equal(packed(slow).coded["0.weight"].codes, codes)


def test_first_and_last_parameter_may_stay_in_full_precision() -> None:
    student = network()
    distiller = quantized_distillation(student, Live(network(7)), 2, skip=first_and_last(student), optimizer=FAST)
    file = packed(distiller)
    assert sorted(file.others) == ["0.weight", "1.num_batches_tracked", "1.running_mean", "1.running_var", "3.bias"]
    assert torch.equal(file.others["0.weight"], student[0].weight)


@pytest.mark.parametrize("gradient", ["straight_through", "truncated", "exact"])
def test_every_gradient_learns_at_two_bits(gradient: str) -> None:
    student = network()
    chance = accuracy(after_training(student, 2).write(network(3)))
    distiller = quantized_distillation(student, Live(trained()), 2, gradient=gradient, optimizer=FAST)
    fit(distiller, loader(), epochs=15, accelerator="cpu")
    assert accuracy(distiller.finish()) > chance + 0.15


def test_at_two_bits_training_beats_rounding_afterwards() -> None:
    teacher = trained()
    rounded = accuracy(after_training(teacher, 2).write(network(3)))
    distiller = quantized_distillation(network(), Live(copy.deepcopy(teacher)), 2, optimizer=FAST)
    fit(distiller, loader(), epochs=20, accelerator="cpu")
    assert accuracy(distiller.finish()) > rounded


def test_an_outlier_spoils_a_tensor_without_buckets_and_one_bucket_with_them() -> None:
    model = nn.Linear(1024, 1, bias=False)
    with torch.no_grad():
        model.weight[0, 0] = 100.0
    own = model.weight.detach().clone()

    def error(bucket_size: int | None) -> Tensor:
        made = after_training(model, 4, bucket_size).tensors()["weight"]
        return (made - own).abs().view(4, 256).amax(dim=1)

    assert bool((error(None)[1:] > 0.02).all())
    assert bool((error(256)[1:] < 0.01).all())


# Method 2.


def test_dq_learns_points_alone_and_keeps_the_budget() -> None:
    model = trained()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    distiller = differentiable_quantization(model, 2, batches=loader())
    view: Any = distiller.weights
    assert isinstance(view, LearnedPoints)
    counts = [len(points) for points in view.points]
    assert sum(counts) == 4 * len(before)
    assert min(counts) >= 2
    assert len(set(counts)) > 1
    start = [points.detach().clone() for points in view.points]
    fit(distiller, loader(), epochs=3, accelerator="cpu")
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())
    assert any(not torch.equal(now, then) for now, then in zip(view.points, start, strict=True))
    file = packed(distiller)
    assert all(bool((value.points.diff() >= 0).all()) for value in file.coded.values())
    assert file.size().point_bytes == 4 * sum(counts)


def test_the_networks_own_teacher_is_a_copy_that_stays_unquantised() -> None:
    model = trained()
    data = {**samples(8), "id": torch.arange(8)}
    own = model(data["input"]).detach()
    distiller = differentiable_quantization(model, 1)
    torch.testing.assert_close(distiller.teacher_signals(data)["logits"], own)
    assert not torch.allclose(distiller.student_signals(data)["logits"], own, atol=1e-2)


def test_the_mixed_mode_ends_on_qd_and_leaves_the_student_learning() -> None:
    student = network()
    distiller = mixed(
        student, Live(trained()), loader, 2, epochs=3, optimizer=FAST, options={"gradient": "exact"}, accelerator="cpu"
    )
    assert all(weight.requires_grad for weight in student.parameters())
    assert len(student[0].weight.unique()) > 4
    assert len(distiller.finish().get_parameter("0.weight").unique()) == 4


# The experiment.


def test_a_mirror_image_is_a_sample_of_its_own() -> None:
    images = torch.arange(12.0).view(2, 1, 2, 3)
    split = mirrored(Split(images, torch.tensor([3, 4]), torch.tensor([10, 11])))
    assert split.id.tolist() == [10, 11, 10 + MIRRORED, 11 + MIRRORED]
    assert split.labels.tolist() == [3, 4, 3, 4]
    assert isinstance(split.input, Tensor)
    assert split.input[2, 0].tolist() == [[2, 1, 0], [5, 4, 3]]


def test_the_exact_claims_hold() -> None:
    exact = [claim for claim in CLAIMS if isinstance(claim, Exact)]
    assert len(exact) == 6
    for claim in exact:
        assert claim.check() <= claim.tolerance, claim.text


def test_every_arm_of_the_sheet_is_there_and_the_network_comes_out_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"{name}-{bits}" for name in ("whole", "posthoc", "ce", "qd", "dq") for bits in (8, 4, 2)}
    assert wanted | {"none", "kd", "mixed-2", "qd-edges-2", "qd-exact-2", "qd-random-4"} <= set(ARMS)
    experiment = Compact("smoke")
    experiment.check()
    outcomes = {arm: experiment.run(arm, 0) for arm in ("kd", "posthoc-2", "norm-2", "qd-2", "dq-4")}
    sizes = {arm: outcome.metrics["packed_bytes"] for arm, outcome in outcomes.items()}
    assert sizes["qd-2"] == sizes["posthoc-2"] == sizes["norm-2"] < sizes["dq-4"] < sizes["kd"] / 4
    assert outcomes["kd"].metrics["compression"] == 1
    assert all(0 < outcome.metrics["huffman_bits"] <= 32 for outcome in outcomes.values())
    # Each arm takes up the distilled student as it is, whatever another one did to its copy.
    assert experiment.run("kd", 0).metrics == outcomes["kd"].metrics
    assert experiment.run("posthoc-2", 0).metrics == outcomes["posthoc-2"].metrics
    assert outcomes["dq-4"].pictures
    assert len(next(iter(outcomes["dq-4"].pictures.values()))) < 12_000
