"""SinKD: the formula, what its plan cannot see, token rows, the released departures, and the small experiments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck import losses
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Distiller, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.experiment import Exact
from limbeck.models.small import MLP
from limbeck.objectives import Objective, total
from limbeck.sources import Live
from limbeck.systems.classification.sinkd import bumps, experiment
from limbeck.systems.classification.sinkd.method import (
    AnnealedTemperature,
    ClassTransport,
    SinkhornTransport,
    regression,
    released_glue,
    released_t0,
    released_transport,
    sinkd,
    token_rows,
    top_classes,
)
from tests.engine.helpers import Cut, Die


def logits(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER, TARGET = logits(8, 6, seed=1), logits(8, 6, seed=2), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])


def terms(objective: Objective, student: Tensor, teacher: Tensor, **batch: Tensor) -> dict[str, Tensor]:
    batch = {"id": torch.arange(len(student)), **batch}
    found: dict[str, Tensor] = objective({"logits": student}, {"logits": teacher}, batch)
    return found


def transport(student: Tensor, teacher: Tensor, objective: Objective | None = None, **batch: Tensor) -> Tensor:
    return total(terms(objective or SinkhornTransport(), student, teacher, **batch))


def value_and_gradient(student: Tensor, teacher: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = transport(student, teacher, objective)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def test_the_released_loss_is_its_three_terms() -> None:
    found = terms(released_glue(alpha=0.9, temperature=3.0), STUDENT, TEACHER, target=TARGET)
    soft = -((TEACHER / 3).softmax(-1) * (STUDENT / 3).log_softmax(-1)).sum(-1).mean()
    cost = ((STUDENT / 2).softmax(-1)[:, None] - (TEACHER / 2).softmax(-1)[None]).abs().sum(-1)
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    torch.testing.assert_close(plan.sum(0), torch.ones(8, dtype=torch.float64))
    hard = torch.nn.functional.cross_entropy(STUDENT, TARGET)
    torch.testing.assert_close(found["cross_entropy"], 0.1 * hard)
    torch.testing.assert_close(found["soft_cross_entropy"], 0.9 * soft)
    torch.testing.assert_close(found["sinkhorn"], 0.0008 * (plan * cost).sum())
    assert set(found) == {"cross_entropy", "soft_cross_entropy", "sinkhorn"}


def test_the_sum_grows_with_the_batch_and_the_mean_does_not() -> None:
    in_sum = SinkhornTransport(reduction="sum")
    twice = STUDENT.repeat(2, 1), TEACHER.repeat(2, 1)
    torch.testing.assert_close(transport(*twice), transport(STUDENT, TEACHER))
    torch.testing.assert_close(transport(*twice, in_sum), 2 * transport(STUDENT, TEACHER, in_sum))
    torch.testing.assert_close(transport(STUDENT, TEACHER, in_sum), 8 * transport(STUDENT, TEACHER))


def test_the_term_does_not_see_which_row_is_whose() -> None:
    for objective in (
        SinkhornTransport(),
        SinkhornTransport(plan_gradient="stopped"),
        SinkhornTransport(debiased=True),
    ):
        plain = value_and_gradient(STUDENT, TEACHER, objective)
        torch.testing.assert_close(value_and_gradient(STUDENT, TEACHER.roll(1, 0), objective), plain)
        torch.testing.assert_close(value_and_gradient(STUDENT, TEACHER, experiment.OtherRows(objective)), plain)
    l1 = experiment.l1()
    assert abs(transport(STUDENT, TEACHER, experiment.OtherRows(l1)) - transport(STUDENT, TEACHER, l1)) > 1e-3


def test_one_row_and_two_classes() -> None:
    one = transport(STUDENT[:1], TEACHER[:1])
    torch.testing.assert_close(one, transport(STUDENT[:1], TEACHER[:1], experiment.l1()))
    student, teacher = STUDENT[:, :2], TEACHER[:, :2]
    p, q = ((side / 2).softmax(-1)[:, 0] for side in (student, teacher))
    plan = losses.sinkhorn_plan(2 * (p[:, None] - q[None]).abs()).plan
    torch.testing.assert_close(transport(student, teacher), (plan * 2 * (p[:, None] - q[None]).abs()).sum())


def test_equal_batches_cost_something_unless_debiased() -> None:
    assert transport(TEACHER, TEACHER) > 1e-4
    assert transport(TEACHER, TEACHER, SinkhornTransport(debiased=True)).abs() < 1e-12


def test_the_gradient_through_the_plan_counts() -> None:
    through = value_and_gradient(STUDENT, TEACHER, SinkhornTransport())
    stopped = value_and_gradient(STUDENT, TEACHER, SinkhornTransport(plan_gradient="stopped"))
    torch.testing.assert_close(through[0], stopped[0])
    assert (through[1] - stopped[1]).abs().max() > 1e-3


def test_nothing_flows_into_the_teacher() -> None:
    teacher = TEACHER.clone().requires_grad_()
    transport(STUDENT.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_small_epsilon_and_half_precision_stay_finite_where_the_plain_kernel_does_not() -> None:
    apart = torch.eye(4).repeat(2, 1)[:4] * 40
    student, teacher = apart, apart.roll(1, 1)
    plain = (-torch.cdist(student.softmax(-1), teacher.softmax(-1)[:1], p=1.0) / 0.01).exp()
    assert (plain == 0).any()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        objective = SinkhornTransport(epsilon=0.01)
        found = value_and_gradient((250 * student).to(dtype), (250 * teacher).to(dtype), objective)
        assert all(bool(each.isfinite().all()) for each in found)


def test_padding_never_reaches_the_term_but_rules_the_released_axes() -> None:
    student, teacher = logits(3, 5, 7, seed=3), logits(3, 5, 7, seed=4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    garbage = torch.where(mask[..., None], student, torch.inf)
    alone = transport(student[mask], teacher[mask])
    torch.testing.assert_close(transport(garbage, teacher, mask=mask), alone)
    weighted = transport(student, teacher, mask=mask, weight=torch.full((3, 5), 0.5))
    torch.testing.assert_close(weighted, 0.5 * alone)

    released = released_t0(released_axes=True)
    target = torch.zeros(3, 5, dtype=torch.int64)
    padded = torch.where(mask[..., None], student, 0.0)
    one, other = (terms(released, side, teacher, target=target, mask=mask)["sinkhorn"] for side in (student, padded))
    assert abs(one - other) > 1e-6
    rows = transport(STUDENT, TEACHER, SinkhornTransport(reduction="sum", released_axes=True))
    torch.testing.assert_close(rows, released_transport(STUDENT, TEACHER))
    torch.testing.assert_close(rows, transport(STUDENT, TEACHER, SinkhornTransport(reduction="sum")))


def test_token_rows_are_drawn_among_those_that_count() -> None:
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) < 0.7
    counting = set(mask.flatten().nonzero().flatten().tolist())
    draw = {step: token_rows(mask.shape, mask, most=12, seed=0, step=step).tolist() for step in range(60)}
    assert all(len(rows) == 12 and len(set(rows)) == 12 and set(rows) <= counting for rows in draw.values())
    assert draw[3] == token_rows(mask.shape, mask, most=12, seed=0, step=3).tolist()
    assert draw[3] != draw[4]
    assert draw[3] != token_rows(mask.shape, mask, most=12, seed=1, step=3).tolist()
    assert set().union(*draw.values()) == counting
    assert set(token_rows(mask.shape, mask, most=None, seed=0, step=0).tolist()) == counting
    assert token_rows((2, 3), None, most=9, seed=0, step=0).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(token_rows((2, 3), torch.zeros(2, 3, dtype=torch.bool), most=2, seed=0, step=0)) == 0


def test_a_capped_term_draws_anew_every_step_and_the_same_when_repeated() -> None:
    student, teacher = logits(4, 9, 5, seed=5), logits(4, 9, 5, seed=6)
    objective = SinkhornTransport(most_rows=6)
    values = []
    for progress in (0.0, 0.25, 0.25):
        objective.set_progress(progress)
        values.append(float(transport(student, teacher, objective)))
    assert values[1] == values[2] != values[0]


def test_classes_are_cut_to_the_union_of_the_teachers_first() -> None:
    teacher = torch.tensor([[5.0, 4.0, 0.0, 0.0, 1.0], [0.0, 4.0, 5.0, 0.0, 1.0]])
    student = torch.arange(10.0).reshape(2, 5)
    cut, kept = top_classes(student, teacher, 2)
    assert torch.equal(cut, student[:, :3])
    assert torch.equal(kept, teacher[:, :3])
    whole = transport(STUDENT, TEACHER, SinkhornTransport(most_classes=6))
    torch.testing.assert_close(whole, transport(STUDENT, TEACHER))


def test_the_annealed_temperature_falls_by_epochs_and_is_followed() -> None:
    schedule = AnnealedTemperature(4.0, 4)
    assert [schedule(p) for p in (0.0, 0.2, 0.25, 0.5, 0.74, 0.75, 1.0)] == [4.0, 4.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    assert AnnealedTemperature(4.0, 1)(0.5) == 4.0
    assert [AnnealedTemperature(3.0, 3)(epoch / 3) for epoch in range(3)] == [3.0, 2.0, 1.0]
    objective = sinkd(temperature=schedule)
    objective.set_progress(0.5)
    found = terms(objective, STUDENT, TEACHER, target=TARGET)["soft_cross_entropy"]
    torch.testing.assert_close(found, 0.9 * losses.soft_cross_entropy(STUDENT, TEACHER, temperature=2.0))


def test_the_sample_wise_variant_is_the_total_variation_blurred() -> None:
    sharp = ClassTransport(epsilon=0.01, iterations=500)
    expected = losses.total_variation(STUDENT, TEACHER, temperature=2.0)
    torch.testing.assert_close(transport(STUDENT, TEACHER, sharp), expected, rtol=1e-2, atol=0)
    assert abs(transport(STUDENT, TEACHER.roll(1, 0), sharp) - expected) > 2e-2


def test_regression_has_no_transport() -> None:
    student, teacher, target = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]]), torch.tensor([0.0, 4.0])
    found = terms(regression(alpha=0.8, temperature=2.0), student, teacher, target=target)
    torch.testing.assert_close(found, {"target_mse": torch.tensor(0.2), "logit_mse": torch.tensor(0.8 * 2.5 / 4)})


def test_wrong_use_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="reduction: given none"):
        SinkhornTransport(reduction="none")
    broken = MLP(4, (), 3)
    torch.nn.init.constant_(broken.head.weight, torch.nan)
    with pytest.raises(LimbeckError, match="teacher signal logits: NaN"):
        Live(broken)({"input": torch.ones(2, 4), "id": torch.arange(2)}, ("logits",))


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(40, 4, generator=generator), torch.arange(40) % 3
    torch.manual_seed(1)
    teacher, first = MLP(4, (16,), 3), MLP(4, (8,), 3).state_dict()

    def run(name: str, resume: bool = False, cut: bool = False) -> dict[str, Tensor]:
        student = MLP(4, (8,), 3)
        student.load_state_dict(first)
        objective = sinkd(temperature=AnnealedTemperature(4.0, 3), transport=SinkhornTransport(most_rows=7))
        loader = TensorLoader(Split(inputs, target, torch.arange(40)), 16, seed=3)
        distiller = Distiller(student, objective, Live(teacher))
        more = {"callbacks": [Die(5)]} if cut else {}
        options = {"out": tmp_path / name, "resume": resume, "checkpoint_seconds": 0.0, "accelerator": "cpu"}
        fit(distiller, loader, epochs=3, **options, **more)
        return student.state_dict()

    whole = run("whole")
    with pytest.raises(Cut):
        run("cut", cut=True)
    resumed = run("cut", resume=True)
    assert any(not torch.equal(whole[name], first[name]) for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("claim", [c for c in (*experiment.IDENTITIES, *bumps.Bumps.claims) if isinstance(c, Exact)])
def test_what_mathematics_decides(claim: Exact) -> None:
    assert claim.check() <= claim.tolerance, claim.text


def test_a_student_at_the_only_bump_has_nothing_to_gain() -> None:
    places = torch.tensor([[25.0, 25.0]], dtype=torch.float64)
    there = torch.tensor([[25.0 / bumps.UNIT, 0.4054651]], dtype=torch.float64)
    assert bumps.judge(there, places)["transport_error"] < 1e-4
    moved = there + torch.tensor([[3 / bumps.UNIT, 0.0]], dtype=torch.float64)
    assert bumps.judge(moved, places)["transport_error"] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("arm", bumps.Bumps.arms)
def test_every_arm_of_the_bumps_runs_and_repeats(arm: str) -> None:
    small = bumps.Bumps("smoke")
    first = small.run(arm, 0)
    assert first.metrics == small.run(arm, 0).metrics
    assert all(value == value for value in first.metrics.values())


def test_the_experiments_are_whole() -> None:
    for kind in experiment.EXPERIMENTS.values():
        kind("full").check()
