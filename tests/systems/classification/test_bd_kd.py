"""The sheet's exact checks and pitfalls of bd-kd."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, PeerDistiller, fit
from limbeck.errors import UserError
from limbeck.experiment import Exact
from limbeck.measure import expected_calibration_error
from limbeck.systems.classification.bd_kd.experiment import EXPERIMENTS
from limbeck.systems.classification.bd_kd.method import (
    BalancedDivergence,
    EntropyGate,
    FixedBalance,
    bd_kd,
    mutual_learning,
)

BALANCES = {
    "gate-a": EntropyGate(),
    "gate-b": EntropyGate(inverted=True),
    "smooth": EntropyGate(sharpness=4.0),
    "symmetric": FixedBalance(1, 1),
    "dml": FixedBalance(1, 0),
    "reverse": FixedBalance(0, 1),
}


def network(seed: int, width: int = 8, classes: int = 3, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(width), nn.Dropout(0.2)] if norm else []
    return nn.Sequential(nn.Linear(5, width), *middle, nn.Tanh(), nn.Linear(width, classes))


def samples(count: int = 24, classes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input": torch.randn(count, 5, generator=generator),
        "target": torch.randint(classes, (count,), generator=generator),
        "id": torch.arange(count),
    }


def pair(student: Tensor, teacher: Tensor, balance: Any, **options: Any) -> dict[str, Tensor]:
    batch = {"id": torch.arange(len(student)), "target": torch.zeros(student.shape[:-1], dtype=torch.int64)}
    return BalancedDivergence(balance, **options)({"logits": student}, {"logits": teacher}, batch)


def train(distiller: PeerDistiller, data: dict[str, Tensor], **options: Any) -> list[dict[str, float]]:
    return fit(distiller, TensorLoader(data, 8, seed=1), accelerator="cpu", log_every=1, **options).lines


def weights(distiller: PeerDistiller) -> Tensor:
    return torch.cat([value.double().flatten() for value in distiller.peers.state_dict().values()])


# The loss.


def test_the_directions_of_kl_against_values_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.7, 0.2, 0.1]])
    terms = pair(student.log(), teacher.log(), FixedBalance(1, 1), temperature=1.0)
    forward = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    reverse = 0.5 * math.log(0.5 / 0.7) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.1)
    assert float(terms["forward_kl"]) == pytest.approx(forward, abs=1e-6)
    assert float(terms["reverse_kl"]) == pytest.approx(reverse, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", BALANCES)
def test_the_loss_is_the_formula(name: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    terms = pair(student, teacher, BALANCES[name], temperature=temperature)
    soft = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p_s, p_t = (ours / temperature).softmax(-1), (theirs / temperature).softmax(-1)
        gap = -(ours.softmax(-1) * ours.log_softmax(-1)).sum() + (theirs.softmax(-1) * theirs.log_softmax(-1)).sum()
        steep = float(torch.sigmoid(4 * gap))
        nu, delta = {
            "gate-a": (1, 2) if gap > 0 else (2, 1),
            "gate-b": (2, 1) if gap > 0 else (1, 2),
            "smooth": (2 - steep, 1 + steep),
            "symmetric": (1, 1),
            "dml": (1, 0),
            "reverse": (0, 1),
        }[name]
        soft += nu * float((p_t * (p_t / p_s).log()).sum()) + delta * float((p_s * (p_s / p_t).log()).sum())
    expected = temperature**2 * soft / 6
    assert float(terms["forward_kl"] + terms["reverse_kl"]) == pytest.approx(expected, rel=1e-9)
    assert float(terms["cross_entropy"]) == pytest.approx(float(-student.log_softmax(-1)[:, 0].mean()), rel=1e-9)


@pytest.mark.parametrize("name", BALANCES)
def test_equal_networks_have_nothing_to_learn_and_the_gate_ties(name: str) -> None:
    student = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    objective = BalancedDivergence(BALANCES[name])
    batch = {"id": torch.arange(6), "target": torch.zeros(6, dtype=torch.int64)}
    terms = objective({"logits": student}, {"logits": student.detach().clone()}, batch)
    soft = terms["forward_kl"] + terms["reverse_kl"]
    (gradient,) = torch.autograd.grad(soft, student)
    assert abs(float(soft.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-12
    assert {key: float(value) for key, value in objective.observed().items()} == {"entropy_gap": 0, "gate_share": 0}


def test_the_gate_favours_what_corrects_the_students_confidence() -> None:
    gap = torch.tensor([0.5, -0.5, 0.0])
    assert [weight.tolist() for weight in EntropyGate()(gap)] == [[1, 2, 1], [2, 1, 1]]
    assert [weight.tolist() for weight in EntropyGate(inverted=True)(gap)] == [[2, 1, 1], [1, 2, 1]]
    assert [weight.tolist() for weight in EntropyGate(low=0.5, high=4)(gap)] == [[0.5, 4, 0.5], [4, 0.5, 0.5]]
    nu, delta = EntropyGate(sharpness=2.0)(gap)
    torch.testing.assert_close(nu, 1 + torch.sigmoid(-2 * gap))
    torch.testing.assert_close(nu + delta, torch.full((3,), 3.0))
    with pytest.raises(UserError, match="gate weights"):
        EntropyGate(low=2, high=1)


def test_entropies_are_compared_at_temperature_one_whatever_the_losses_use() -> None:
    # At temperature 8 the order of these two entropies is the other way round.
    student, teacher = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([[4.0, 4.0, -40.0]])
    objective = BalancedDivergence(temperature=8.0)
    objective({"logits": student}, {"logits": teacher}, {"id": torch.arange(1), "target": torch.tensor([0])})
    cold = [float(-(p * p.log()).sum()) for p in (student.softmax(-1), teacher.softmax(-1) + 1e-30)]
    warm = [float(-(p * p.log()).sum()) for p in ((student / 8).softmax(-1), (teacher / 8).softmax(-1))]
    assert warm[0] - warm[1] > 0 > cold[0] - cold[1]
    assert float(objective.observed()["entropy_gap"]) == pytest.approx(cold[0] - cold[1], abs=1e-5)
    assert float(objective.observed()["gate_share"]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_teacher_that_rules_a_class_out_gives_a_bounded_reverse_kl(dtype: torch.dtype) -> None:
    student = torch.tensor([[0.0, 1e4], [0.0, 0.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[1e4, 0.0], [3e4, -3e4]], dtype=dtype)
    terms = pair(student, teacher, EntropyGate(), temperature=1.0)
    (gradient,) = torch.autograd.grad(terms["reverse_kl"], student)
    assert torch.isfinite(gradient).all()
    assert 0 < float(terms["reverse_kl"].detach()) <= 2 * 30
    loose = pair(student, teacher, EntropyGate(), temperature=1.0, floor=-math.inf)
    assert float(loose["reverse_kl"].detach()) > 1000


def test_masked_and_weighed_rows_and_positions_of_a_text() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 6, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    target = torch.randint(6, (2, 4), generator=generator)
    objective = BalancedDivergence()
    flat = objective(
        {"logits": student[mask]}, {"logits": teacher[mask]}, {"id": torch.arange(5), "target": target[mask]}
    )
    seen = objective.observed()
    student[~mask], teacher[~mask] = math.nan, math.inf
    batch = {"id": torch.arange(2), "target": target, "mask": mask}
    whole = objective({"logits": student}, {"logits": teacher}, batch)
    for name, value in flat.items():
        torch.testing.assert_close(whole[name], value)
    for name, value in objective.observed().items():
        torch.testing.assert_close(value, seen[name])
    doubled = objective({"logits": student}, {"logits": teacher}, {**batch, "weight": torch.full((2, 4), 2.0)})
    for name, value in flat.items():
        torch.testing.assert_close(doubled[name], 2 * value)


def test_a_warm_up_trains_on_the_labels_alone() -> None:
    objective = BalancedDivergence(warmup=0.25)
    signals = ({"logits": torch.randn(4, 3)}, {"logits": torch.randn(4, 3)})
    batch = {"id": torch.arange(4), "target": torch.zeros(4, dtype=torch.int64)}
    assert set(objective(*signals, batch)) == {"cross_entropy"}
    objective.set_progress(0.25)
    assert set(objective(*signals, batch)) == {"cross_entropy", "forward_kl", "reverse_kl"}


@pytest.mark.parametrize("balance", BALANCES.values())
def test_two_classes_and_a_single_sample_run(balance: Any) -> None:
    terms = pair(torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, 0.5]]), balance)
    assert all(bool(torch.isfinite(value)) for value in terms.values())


@pytest.mark.parametrize("student_first", [True, False])
def test_networks_of_different_label_spaces_are_refused(student_first: bool) -> None:
    small, large = ({"small": network(0, classes=2)}, {"large": network(1, classes=3)})
    distiller = bd_kd(*((small, large) if student_first else (large, small)))
    batch = samples(4, classes=2)
    with pytest.raises(UserError, match="shape"):
        distiller.terms_of("small", distiller.signals(batch), batch)


# Two and more networks together.


def test_no_gradient_of_one_networks_loss_reaches_the_other() -> None:
    distiller = bd_kd({"student": network(0)}, {"teacher": network(1)})
    batch = samples()
    for own, other in (("student", "teacher"), ("teacher", "student")):
        distiller.zero_grad(set_to_none=True)
        torch.stack(list(distiller.terms_of(own, distiller.signals(batch), batch).values())).sum().backward()
        assert all(parameter.grad is not None for parameter in distiller.peers[own].parameters())
        assert all(parameter.grad is None for parameter in distiller.peers[other].parameters())


def test_forward_only_is_deep_mutual_learning_step_for_step() -> None:
    data, temperature = samples(), 3.0
    settings = OptimizerSettings("sgd", lr=0.1, weight_decay=0.0, schedule="constant")
    distiller = bd_kd(
        {"student": network(0)},
        {"teacher": network(1, width=16)},
        balance=FixedBalance(1, 0),
        temperature=temperature,
        optimizers=settings,
    )
    student, teacher = network(0), network(1, width=16)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True) for model in (student, teacher)]
    for batch in TensorLoader(data, 8, seed=1):
        logits = [student(batch["input"]), teacher(batch["input"])]
        for own, other, optimizer in ((0, 1, optimizers[0]), (1, 0, optimizers[1])):
            target = (logits[other].detach() / temperature).log_softmax(-1)
            mutual = functional.kl_div(
                (logits[own] / temperature).log_softmax(-1), target, reduction="batchmean", log_target=True
            )
            loss = functional.cross_entropy(logits[own], batch["target"]) + temperature**2 * mutual
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    train(distiller, data, epochs=1)
    ours = weights(distiller)
    theirs = torch.cat([p.detach().double().flatten() for p in (*student.parameters(), *teacher.parameters())])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert float((ours - weights(bd_kd({"student": network(0)}, {"teacher": network(1, width=16)}))).abs().max()) > 1e-2


def test_alternating_updates_show_the_teacher_the_student_after_its_step() -> None:
    made = {}
    for update in ("simultaneous", "alternating"):
        settings = OptimizerSettings("sgd", lr=0.1)
        distiller = bd_kd({"student": network(0)}, {"teacher": network(1)}, optimizers=settings, update=update)
        train(distiller, samples(8), epochs=1)
        made[update] = {name: peer[0].weight.detach() for name, peer in distiller.peers.items()}
    torch.testing.assert_close(made["simultaneous"]["student"], made["alternating"]["student"], rtol=0, atol=0)
    assert not torch.equal(made["simultaneous"]["teacher"], made["alternating"]["teacher"])


def test_both_networks_learn_in_training_mode() -> None:
    distiller = bd_kd({"student": network(0, norm=True)}, {"teacher": network(1, norm=True)})
    train(distiller, samples(), epochs=2)
    for name in distiller.peers:
        finished = distiller.finish(name)
        assert int(finished[1].num_batches_tracked) == 6
        assert not finished.training


def test_many_networks_average_their_pairwise_terms() -> None:
    distiller = bd_kd({"a": network(0), "b": network(1)}, {"t": network(2, width=16)})
    batch = samples()
    logits = {name: {"logits": peer(batch["input"])} for name, peer in distiller.peers.items()}
    both = distiller.terms_of("a", logits, batch)
    single = [BalancedDivergence()(logits["a"], logits[other], batch) for other in ("b", "t")]
    for name, value in both.items():
        torch.testing.assert_close(value, (single[0][name] + single[1][name]) / 2)
    lines = train(distiller, samples(), epochs=2)
    assert {"a/gate_share", "b/gate_share", "t/kl", "b/reverse_kl"} <= set(lines[-1])
    with pytest.raises(UserError, match="names other than"):
        bd_kd({"a": network(0)}, {"a": network(1)})


def test_the_observed_gap_of_many_networks_is_averaged_too() -> None:
    distiller = bd_kd({"a": network(0)}, {"t": network(1), "u": network(2)})
    batch, objective = samples(8), BalancedDivergence()
    gaps = []
    with torch.no_grad():
        for other in ("t", "u"):
            signals = [{"logits": distiller.peers[name](batch["input"])} for name in ("a", other)]
            objective(*signals, batch)
            gaps.append(float(objective.observed()["entropy_gap"]))
    loader = TensorLoader(batch, 8, shuffle=False)
    lines = fit(distiller, loader, epochs=1, accelerator="cpu", log_every=1).lines
    assert lines[0]["a/entropy_gap"] == pytest.approx(sum(gaps) / 2, abs=1e-6)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_a_resumed_training_ends_with_the_same_bits(update: str, tmp_path: Path) -> None:
    def fresh() -> PeerDistiller:
        students, teachers = {"student": network(0, norm=True)}, {"teacher": network(1, norm=True)}
        return bd_kd(students, teachers, warmup=0.2, update=update)

    straight = fresh()
    lines = train(straight, samples(), epochs=4)

    class Stop(Exception):
        pass

    def stop(distiller: nn.Module) -> dict[str, float]:
        if distiller.steps_done == 9:
            raise Stop
        return {"steps": float(distiller.steps_done)}

    # Stopped behind the second epoch's checkpoint, in the third epoch's validation.
    with pytest.raises(Stop):
        train(fresh(), samples(), epochs=4, out=tmp_path, validate=stop)
    resumed = fresh()
    again = train(resumed, samples(), epochs=4, out=tmp_path, resume=True)
    assert torch.equal(weights(straight), weights(resumed))
    assert resumed.steps_done == 12
    assert lines[-1]["loss"] == again[-1]["loss"]


@pytest.mark.parametrize("name", BALANCES)
def test_random_labels_do_not_break_the_training(name: str) -> None:
    distiller = bd_kd({"student": network(0)}, {"teacher": network(1)}, balance=BALANCES[name])
    assert all(math.isfinite(line["loss"]) for line in train(distiller, samples(classes=3, seed=7), epochs=3))


# Calibration and the experiment.


def test_the_ece_of_a_calibrated_predictor_tends_to_zero() -> None:
    errors = []
    for count in (500, 20_000, 400_000):
        generator = torch.Generator().manual_seed(1)
        logits = 2 * torch.randn(count, 5, generator=generator)
        target = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        errors.append(expected_calibration_error(logits, target))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 3e-3


def test_a_wrong_direction_or_a_leak_would_fail_the_exact_claims() -> None:
    exact = [claim for claim in EXPERIMENTS["few"].claims if isinstance(claim, Exact)]
    assert len(exact) == 3
    for claim in exact:
        assert claim.check() <= claim.tolerance


def test_every_mutual_arm_has_the_same_teacher_loss_and_only_the_students_differs() -> None:
    for kind in EXPERIMENTS.values():
        experiment = kind("smoke")
        experiment.check()
        for name, arm in experiment.arms.items():
            teacher = arm.setting["teacher"]
            alone = teacher is None
            assert alone == (name.startswith("independent") or arm.options.get("offline", False))
            if not alone:
                assert repr(teacher()) == repr(mutual_learning(2.0))
        assert isinstance(experiment.arms["gate-a"].setting["student"]().balance, EntropyGate)
        assert experiment.arms["independent"].setting["student"] is None
