"""Transport losses against linear programmes and the released loop, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from limbeck.errors import UserError
from limbeck.losses import transport as t
from limbeck.losses.divergences import forward_kl, jensen_shannon

from . import invariants as check

INF = float("inf")
STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
BINS = (torch.arange(6.0)[:, None] - torch.arange(6.0)).abs().double()
BATCH = {
    "l1": t.sinkhorn_distance,
    "l2": partial(t.sinkhorn_distance, cost="l2"),
    "kl": partial(t.sinkhorn_distance, cost="kl"),
    "debiased": partial(t.sinkhorn_distance, debiased=True),
}
CLASSES = {
    "classes": lambda s, p, **o: t.class_transport(s, p, BINS, epsilon=0.5, iterations=30, **o),
    "classes_debiased": lambda s, p, **o: t.class_transport(s, p, BINS, epsilon=0.5, debiased=True, **o),
}
EVERY = {name: (loss, True) for name, loss in BATCH.items()} | {name: (loss, False) for name, loss in CLASSES.items()}
every_loss = pytest.mark.parametrize(("loss", "batchwise"), EVERY.values(), ids=EVERY)


def linear_programme(cost, row_mass, column_mass):
    """The least cost of a plan with these marginals, by the simplex method."""
    n, m = cost.shape
    sums = np.zeros((n + m, n * m))
    for i in range(n):
        sums[i, i * m : (i + 1) * m] = 1
    for j in range(m):
        sums[n + j, j::m] = 1
    return optimize.linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([row_mass, column_mass])).fun


def released(student, teacher, temperature=2.0, epsilon=0.1, iterations=20):
    """The published loop on plain kernels, row then column, mass B."""
    q, p = special.softmax(student / temperature, -1), special.softmax(teacher / temperature, -1)
    cost = np.abs(q[:, None] - p[None]).sum(-1)
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return plan, cost


@every_loss
def test_contract(loss, batchwise):
    check.check_contract(loss, STUDENT, TEACHER, batchwise=batchwise)
    check.check_leading_axes(loss, STUDENT, TEACHER)
    check.check_shift(loss, STUDENT, TEACHER)


@every_loss
def test_gradient(loss, batchwise):
    check.check_gradient(loss, STUDENT[:4], TEACHER[:4], wrt=(0, 1))


@every_loss
def test_finite_in_half_precision(loss, batchwise):
    student, teacher = check.extreme_logits(6)
    check.check_half(loss, student, teacher)
    check.check_half(partial(t.sinkhorn_distance, epsilon=1e-4), student, teacher)


@every_loss
def test_padded_vocabulary(loss, batchwise):
    padding = torch.full((8, 2), -INF, dtype=torch.float64)
    value, grad = check.gradient(loss, STUDENT, TEACHER)
    if not batchwise:
        wide = torch.nn.functional.pad(BINS, (0, 2, 0, 2), value=7.0)
        loss = partial(loss_with_cost, loss is CLASSES["classes_debiased"], wide)
    padded = [torch.cat([side, padding], -1) for side in (STUDENT, TEACHER)]
    padded_value, padded_grad = check.gradient(loss, *padded)
    torch.testing.assert_close(padded_value, value)
    torch.testing.assert_close(padded_grad[:, :6], grad)
    assert not padded_grad[:, 6:].any()


def loss_with_cost(debiased, cost, student, teacher, **options):
    iterations = 100 if debiased else 30
    return t.class_transport(student, teacher, cost, epsilon=0.5, iterations=iterations, debiased=debiased, **options)


def test_agrees_with_the_released_loop():
    plan, cost = released(STUDENT.numpy(), TEACHER.numpy())
    total = t.sinkhorn_distance(STUDENT, TEACHER, reduction="sum")
    assert total.item() == pytest.approx((plan * cost).sum(), rel=1e-10)
    assert t.sinkhorn_distance(STUDENT, TEACHER).item() == pytest.approx((plan * cost).sum() / 8, rel=1e-10)
    ours = t.sinkhorn_plan(torch.from_numpy(cost))
    torch.testing.assert_close(ours.plan * 8, torch.from_numpy(plan))
    assert ours.residual.item() == pytest.approx(np.abs(plan.sum(1) - 1).sum() / 8, abs=1e-12)


def test_costs_agree_with_loops():
    q, p = (special.softmax(side.numpy(), -1) for side in (STUDENT, TEACHER))
    one = [t.sinkhorn_distance(STUDENT[:1], TEACHER[:1], cost=cost, temperature=1.0).item() for cost in t.COSTS]
    want = [np.abs(q[0] - p[0]).sum(), np.linalg.norm(q[0] - p[0]), stats.entropy(p[0], q[0])]
    assert one == pytest.approx(want, rel=1e-9)


def test_one_row_gives_the_l1_distance_with_its_gradient():
    value, grad = check.gradient(t.sinkhorn_distance, STUDENT[:1], TEACHER[:1])
    rival = lambda s, p: ((s / 2).softmax(-1) - (p / 2).softmax(-1)).abs().sum()  # noqa: E731
    want, want_grad = check.gradient(rival, STUDENT[:1], TEACHER[:1])
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(grad, want_grad)


def test_small_epsilon_tends_to_the_linear_programme():
    _, cost = released(STUDENT.numpy(), TEACHER.numpy())
    want = linear_programme(cost, np.full(8, 1 / 8), np.full(8, 1 / 8))
    got = t.sinkhorn_distance(STUDENT, TEACHER, epsilon=2e-3, iterations=3000, tolerance=1e-9)
    assert got.item() == pytest.approx(want, rel=1e-3)
    coarse = t.sinkhorn_distance(STUDENT, TEACHER, epsilon=1.0, iterations=200)
    assert coarse.item() > got.item()


def test_marginals():
    cost = check.logits(3, 5, 7, seed=9).abs()
    row_mass, column_mass = check.logits(3, 5, seed=1).softmax(-1), check.logits(3, 7, seed=2).softmax(-1)
    plan, residual = t.sinkhorn_plan(
        cost,
        epsilon=0.3,
        iterations=5000,
        tolerance=1e-10,
        log_row_mass=row_mass.log(),
        log_column_mass=column_mass.log(),
    )
    torch.testing.assert_close(plan.sum(-2), column_mass)
    torch.testing.assert_close(plan.sum(-1), row_mass)
    assert residual.shape == (3,)
    assert residual.max() <= 1e-10
    for i in range(3):
        want = linear_programme(cost[i].numpy(), row_mass[i].numpy(), column_mass[i].numpy())
        assert (plan[i] * cost[i]).sum().item() >= want - 1e-9
    rough = t.sinkhorn_plan(cost, iterations=1)
    assert rough.residual.max() > 1e-3
    torch.testing.assert_close(rough.plan.sum(-2), torch.full((3, 7), 1 / 7, dtype=torch.float64))


def test_mass_of_zero_moves_nothing():
    row_mass = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    column_mass = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    cost = check.logits(3, 3).abs().requires_grad_(True)
    plan, _ = t.sinkhorn_plan(
        cost, epsilon=0.5, iterations=500, log_row_mass=row_mass.log(), log_column_mass=column_mass.log()
    )
    torch.testing.assert_close(plan.sum(-1), row_mass)
    torch.testing.assert_close(plan.sum(-2), column_mass)
    (grad,) = torch.autograd.grad((plan * cost).sum(), cost)
    assert torch.isfinite(grad).all()


def test_value_does_not_depend_on_the_order_of_either_side():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    options = {"iterations": 2000, "epsilon": 0.2}
    value, grad = check.gradient(t.sinkhorn_distance, STUDENT, TEACHER, **options)
    torch.testing.assert_close(t.sinkhorn_distance(STUDENT, TEACHER[order], **options), value)
    permuted_value, permuted_grad = check.gradient(t.sinkhorn_distance, STUDENT[order], TEACHER, **options)
    torch.testing.assert_close(permuted_value, value)
    torch.testing.assert_close(permuted_grad, grad[order])


def test_equal_batches_cost_something_unless_debiased():
    assert t.sinkhorn_distance(STUDENT, STUDENT, epsilon=1.0) > 0.05
    check.check_zero_at_match(partial(t.sinkhorn_distance, debiased=True, epsilon=1.0), STUDENT, STUDENT)
    classes = partial(t.class_transport, class_cost=BINS, epsilon=2.0, debiased=True)
    check.check_zero_at_match(classes, STUDENT, STUDENT)
    # At a small epsilon the rounds leave the plan a little unbalanced: the gradient is small, not zero.
    value, grad = check.gradient(BATCH["debiased"], STUDENT, STUDENT)
    assert value.item() == 0.0
    assert grad.abs().max() < 1e-3 * check.gradient(BATCH["debiased"], STUDENT, TEACHER)[1].abs().max()


def test_plan_gradient():
    """Stopped: exactly the gradient of the cost under a fixed plan. Through: another one."""
    value, stopped = check.gradient(t.sinkhorn_distance, STUDENT, TEACHER, plan_gradient="stopped")
    plan = torch.from_numpy(released(STUDENT.numpy(), TEACHER.numpy())[0]) / 8

    def fixed(student, teacher):
        gaps = (student / 2).softmax(-1)[:, None] - (teacher / 2).softmax(-1)[None]
        return (plan * gaps.abs().sum(-1)).sum()

    want_value, want = check.gradient(fixed, STUDENT, TEACHER)
    torch.testing.assert_close(value, want_value)
    torch.testing.assert_close(stopped, want)
    through = check.gradient(t.sinkhorn_distance, STUDENT, TEACHER)[1]
    assert (through - stopped).abs().max() > 1e-4


def test_masked_rows_leave_the_plan():
    """The columns of masked rows go too: the rest is the transport of the kept rows alone."""
    mask = torch.tensor([True, False, True, True, False, True, True, True])
    got = t.sinkhorn_distance(STUDENT, TEACHER, mask=mask, reduction="none")
    torch.testing.assert_close(got[mask], t.sinkhorn_distance(STUDENT[mask], TEACHER[mask], reduction="none"))


def test_a_class_ruled_out_by_the_student_alone_stays_finite():
    student = STUDENT.clone()
    student[:, 0] = -INF
    value, grad = check.gradient(t.sinkhorn_distance, student, TEACHER, cost="kl")
    assert torch.isfinite(value)
    assert value > 1e20
    assert torch.isfinite(grad).all()


def test_class_transport_tends_to_the_linear_programme_and_to_scipys_wasserstein():
    loss = partial(t.class_transport, class_cost=BINS, epsilon=0.02, iterations=3000, tolerance=1e-9)
    got = loss(STUDENT, TEACHER, reduction="none")
    q, p = (special.softmax(side.numpy(), -1) for side in (STUDENT, TEACHER))
    for i in range(8):
        want = linear_programme(BINS.numpy(), q[i], p[i])
        assert got[i].item() == pytest.approx(want, rel=2e-2, abs=2e-3)
        assert stats.wasserstein_distance(range(6), range(6), q[i], p[i]) == pytest.approx(want, abs=1e-9)


def test_transport_sees_distance_where_divergences_are_blind():
    """Two sides without overlap: Jensen-Shannon has no gradient, transport costs the bins between them."""
    far, near, goal = (torch.full((1, 6), -200.0).scatter(-1, torch.tensor([[i]]), 0.0) for i in (5, 2, 0))
    for student in (far, near):
        assert check.gradient(jensen_shannon, student, goal)[1].abs().max() < 1e-6
    cost = partial(t.class_transport, class_cost=BINS.float(), epsilon=0.1)
    assert cost(far, goal).item() == pytest.approx(5.0, abs=1e-3)
    assert cost(near, goal).item() == pytest.approx(2.0, abs=1e-3)
    assert forward_kl(far, goal).item() == pytest.approx(forward_kl(near, goal).item())
    spread = torch.zeros(1, 6)
    grad = check.gradient(cost, spread, goal)[1][0]
    assert (grad.diff() > 0).all(), "mass further from the goal is pushed down harder"


def test_errors_name_the_argument():
    cases = [
        ("teacher_logits", lambda: t.sinkhorn_distance(STUDENT, TEACHER[:4])),
        ("cost", lambda: t.sinkhorn_distance(STUDENT, TEACHER, cost="cosine")),
        ("plan_gradient", lambda: t.sinkhorn_distance(STUDENT, TEACHER, plan_gradient="none")),
        ("epsilon", lambda: t.sinkhorn_distance(STUDENT, TEACHER, epsilon=0.0)),
        ("iterations", lambda: t.sinkhorn_distance(STUDENT, TEACHER, iterations=0)),
        ("class_cost", lambda: t.class_transport(STUDENT, TEACHER, BINS[:5])),
        ("temperature", lambda: t.class_transport(STUDENT, TEACHER, BINS, temperature=0.0)),
    ]
    for key, call in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.key == key
