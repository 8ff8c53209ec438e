"""Optimal transport with entropy: between the rows of a batch, or between the classes of one row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses._inputs import check_choice, check_row_mask, check_same_shape, expected, temper
from limbeck.losses.reduce import full_precision, hide_masked, reduce_rows

COSTS = ("l1", "l2", "kl")
PLAN_GRADIENTS = ("through", "stopped")
# Log-probability of a class that the student rules out; minus infinity would breed NaN in the plan.
RULED_OUT = -1e30


class SinkhornPlan(NamedTuple):
    """A transport plan ``[..., N, M]``, and by how much its row sums are off in total, ``[...]``."""

    plan: Tensor
    residual: Tensor


def sinkhorn_plan(
    cost: Tensor,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    tolerance: float = 0.0,
    log_row_mass: Tensor | None = None,
    log_column_mass: Tensor | None = None,
) -> SinkhornPlan:
    """Entropic transport plan by Sinkhorn's iterations in the log domain; differentiable through all of them.

    Minimises ``sum_ij P_ij cost_ij - epsilon entropy(P)`` over plans with the given row and column sums.
    Every round scales the rows and then the columns, so column sums are exact and the residual is in the
    rows.

    Args:
        cost: ``[..., N, M]``, finite.
        epsilon: strength of the entropy, in the unit of the cost; the smaller, the nearer to plain transport
            and the more iterations.
        iterations: at most this many rounds.
        tolerance: stop once the residual is no larger (for every plan of a stack); 0 never stops early.
        log_row_mass, log_column_mass: logarithms of the wanted sums ``[..., N]``, ``[..., M]``, with equal
            totals; -inf is allowed. By default all rows, and all columns, are alike and the plan has mass 1.

    Source: Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport, NeurIPS 2013
    """
    if not epsilon > 0:
        raise UserError("epsilon", epsilon, "a positive number")
    if iterations < 1:
        raise UserError("iterations", iterations, "at least 1")
    cost = full_precision(cost)
    rows, columns = cost.shape[-2:]
    if log_row_mass is None:
        log_row_mass = cost.new_full((rows,), float(rows)).log().neg()
    if log_column_mass is None:
        log_column_mass = cost.new_full((columns,), float(columns)).log().neg()
    kernel = -cost / epsilon
    right = torch.zeros_like(kernel[..., 0, :])
    log_plan, residual = kernel, kernel.new_zeros(cost.shape[:-2])
    for step in range(iterations):
        left = log_row_mass - (kernel + right.unsqueeze(-2)).logsumexp(dim=-1)
        right = log_column_mass - (kernel + left.unsqueeze(-1)).logsumexp(dim=-2)
        if tolerance > 0 or step == iterations - 1:
            log_plan = left.unsqueeze(-1) + kernel + right.unsqueeze(-2)
            residual = (log_plan.detach().exp().sum(dim=-1) - log_row_mass.detach().exp()).abs().sum(dim=-1)
            if tolerance > 0 and bool((residual <= tolerance).all()):
                break
    return SinkhornPlan(log_plan.exp(), residual)


def sinkhorn_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    cost: str = "l1",
    epsilon: float = 0.1,
    iterations: int = 20,
    tolerance: float = 0.0,
    plan_gradient: str = "through",
    debiased: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Sinkhorn distillation (SinKD): transport between the batches of student and teacher distributions.

    Formula: ``sum_ij P_ij W_ij``, ``W_ij = ||q_i - p_j||_1``, P the plan of Sinkhorn(W / epsilon), p teacher,
        q student
    Source: Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation, COLING 2024
    Batch-wise: yes, every student row is matched with every teacher row; gather the rows of all processes
        first

    The reduction is the mass of the plan. ``sum``, as released: the columns of P sum to 1, so the value grows
    with the batch. ``mean`` (default): mass 1, so its weight does not depend on the batch size. One row gives
    the L1 distance. Entropy blurs the plan: equal batches give more than 0 unless ``debiased``. It does not
    say which row is which, so keep a per-row loss beside it.

    Args:
        student_logits, teacher_logits: ``[..., C]``; all leading axes together are the batch (N rows, cost
            N^2).
        temperature: T of both sides; a number, or one per row.
        cost: ``l1`` (as published, at most 2), ``l2`` (Euclidean), or ``kl``, KL(teacher || student).
        epsilon, iterations, tolerance: see :func:`sinkhorn_plan`.
        plan_gradient: ``through`` the iterations (as released), or ``stopped``: the plan is a constant.
        debiased: take off half the distance of each batch to itself; zero for equal batches, and so is the
            gradient once the iterations have converged.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`. Masked rows are
            left out of the plan. The value of a row is what its transport costs.

    :func:`class_transport` moves mass between classes, row by row.
    """
    check_choice("cost", cost, COSTS)
    check_choice("plan_gradient", plan_gradient, PLAN_GRADIENTS)
    check_same_shape(student_logits, teacher_logits)
    rows = student_logits.shape[:-1]
    mask = check_row_mask(mask, rows)
    student = temper(hide_masked(student_logits, mask), temperature).log_softmax(dim=-1)
    teacher = temper(hide_masked(teacher_logits, mask), temperature).log_softmax(dim=-1)
    keep = torch.ones(rows, dtype=torch.bool, device=student.device) if mask is None else mask
    student, teacher = student[keep], teacher[keep]

    def transport(first: Tensor, second: Tensor) -> Tensor:
        work = _pairwise_cost(first, second, cost)
        plan = sinkhorn_plan(work, epsilon=epsilon, iterations=iterations, tolerance=tolerance).plan
        return ((plan.detach() if plan_gradient == "stopped" else plan) * work).sum(dim=-1) * len(work)

    if len(student):
        shares = transport(student, teacher)
        if debiased:
            shares = shares - 0.5 * (transport(student, student) + transport(teacher, teacher))
    else:
        shares = student.sum(dim=-1)
    values = shares.new_zeros(rows).masked_scatter(keep, shares)
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def class_transport(
    student_logits: Tensor,
    teacher_logits: Tensor,
    class_cost: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    epsilon: float = 0.1,
    iterations: int = 100,
    tolerance: float = 0.0,
    debiased: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Transport of the student's probability to the teacher's, row by row, given the cost of each move.

    Formula: ``sum_cd P_cd W_cd``, P the entropic plan with row sums q (student) and column sums p (teacher)
    Source: Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation, COLING 2024 (sample-wise
        variant)
    Batch-wise: no

    Where the classes have a geometry (bins, grades, places) its gradient points the way even if the two sides
    do not overlap, which no divergence does. The gradient goes through the iterations,
    each of which keeps ``rows * C^2`` numbers: for tens of classes, not for vocabularies.

    Args:
        student_logits, teacher_logits: ``[..., C]``.
        class_cost: ``[C, C]``, at least 0: what moving one unit from student class c to teacher class d
            costs, such as ``|c - d|``.
        temperature: T of both sides; a number, or one per row.
        epsilon, iterations, tolerance: see :func:`sinkhorn_plan`; epsilon is in the unit of ``class_cost``.
        debiased: take off half the cost of each side to itself; zero at student = teacher, and so is the
            gradient once the iterations have converged (slowly, for a small epsilon: look at the residual of
            the plan).
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    :func:`sinkhorn_distance` transports between the rows of the batch instead.
    """
    check_same_shape(student_logits, teacher_logits)
    classes = student_logits.shape[-1]
    if class_cost.shape != (classes, classes):
        raise UserError("class_cost", f"shape {list(class_cost.shape)}", f"[{classes}, {classes}]")
    mask = check_row_mask(mask, student_logits.shape[:-1])
    student = temper(hide_masked(student_logits, mask), temperature).log_softmax(dim=-1)
    teacher = temper(hide_masked(teacher_logits, mask), temperature).log_softmax(dim=-1)
    moves = class_cost.to(student)

    def transport(first: Tensor, second: Tensor) -> Tensor:
        plan = sinkhorn_plan(
            moves.expand(*first.shape, classes),
            epsilon=epsilon,
            iterations=iterations,
            tolerance=tolerance,
            log_row_mass=first,
            log_column_mass=second,
        ).plan
        return (plan * moves).sum(dim=(-2, -1))

    values = transport(student, teacher)
    if debiased:
        values = values - 0.5 * (transport(student, student) + transport(teacher, teacher))
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def _pairwise_cost(student: Tensor, teacher: Tensor, cost: str) -> Tensor:
    """``[N, M]`` distances between rows of log-probabilities."""
    if cost == "l1":
        return torch.cdist(student.exp(), teacher.exp(), p=1.0)
    if cost == "l2":
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(student.exp(), teacher.exp(), p=2.0, compute_mode=mode)
    target = teacher.exp()
    finite = torch.where(torch.isneginf(student), RULED_OUT, student)
    return expected(target, teacher).unsqueeze(0) - finite @ target.T
