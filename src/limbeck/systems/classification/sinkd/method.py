"""SinKD: transport between the batch of teacher distributions and the batch of student distributions.

Over the N rows of a batch, with student logits s and teacher logits t (constant):

    p_i = softmax(s_i / tau)    q_j = softmax(t_j / tau)                             tau = 2
    W_ij = || p_i - q_j ||_1                                                         in [0, 2]
    K = exp(-W / eps); 20 times: K <- K / row sums, K <- K / column sums; P = K      eps = 0.1, in the log domain
    L_SD = sum_ij P_ij W_ij                                                          released; / N here by default
    L = (1 - alpha) CE(y, s) + alpha L_KD + beta L_SD                                alpha = 0.9, beta = 0.8
    L_KD = - mean_i sum_c q_ic log p_ic at a temperature of its own, without T^2

P matches rows of the whole batch, so L_SD is the same whichever row of the teacher belongs to which row of the student:
L_KD is what tells them apart. P depends on the student, and the gradient goes through the iterations too.

"Sinkhorn Distance Minimization for Knowledge Distillation", COLING 2024; official code 2018cx/SinKD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck import losses
from limbeck.data.views import uniform, view_seeds
from limbeck.errors import UserError
from limbeck.objectives import CrossEntropy, LogitObjective, Needs, Objective, TargetMSE
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, dense


class SinkhornTransport(Objective):
    """L_SD: what it costs to turn the batch of student distributions into the teacher's.

    Args:
        temperature, epsilon, iterations, cost: tau, eps, rounds and ``l1`` (``l2``, ``kl``) of the formula.
        reduction: ``mean`` gives the plan mass 1, so that the weight means the same at every batch size; ``sum`` is the
            released form, which grows with the batch.
        plan_gradient: ``through`` the iterations, or ``stopped``: P is a constant.
        debiased: take off each batch's cost to itself, which is not 0.
        most_rows: draw at most so many of the rows that count (tokens), anew every step: the cost is quadratic.
        most_classes: compare only on the classes among the teacher's first so many in any row: vocabularies.
        released_axes: :func:`released_transport`, for comparison with the released trainer.
    """

    needs = Needs(student="logits", teacher="logits")
    batchwise = True

    def __init__(
        self,
        temperature: float | Schedule = 2.0,
        *,
        epsilon: float = 0.1,
        iterations: int = 20,
        cost: str = "l1",
        reduction: str = "mean",
        plan_gradient: str = "through",
        debiased: bool = False,
        most_rows: int | None = None,
        most_classes: int | None = None,
        released_axes: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UserError("reduction", reduction, ("mean", "sum"))
        self.temperature, self.reduction, self.seed = temperature, reduction, seed
        self.plan: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations, "cost": cost}
        self.plan |= {"plan_gradient": plan_gradient, "debiased": debiased}
        self.most_rows, self.most_classes, self.released_axes = most_rows, most_classes, released_axes

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs, tau = dense(student, "logits"), dense(teacher, "logits"), self.now(self.temperature)
        if self.released_axes:
            return {"sinkhorn": released_transport(ours, theirs, tau)}
        step = int(batch["id"].sum()) + int(self.progress * 2**32)
        rows = token_rows(ours.shape[:-1], batch.get("mask"), most=self.most_rows, seed=self.seed, step=step)
        rows = rows.to(ours.device)
        ours, theirs = ours.flatten(0, -2)[rows], theirs.flatten(0, -2)[rows]
        if self.most_classes is not None:
            ours, theirs = top_classes(ours, theirs, self.most_classes)
        weight = batch.get("weight")
        if weight is not None:
            weight = weight.flatten()[rows]
        value = losses.sinkhorn_distance(
            ours, theirs, temperature=tau, weight=weight, reduction=self.reduction, **self.plan
        )
        return {"sinkhorn": value}


class ClassTransport(LogitObjective):
    """The sample-wise variant: within each row, from class to class.

    Args:
        class_cost: ``[C, C]``; by default every move to another class costs 1, which without entropy is the total
            variation.
        temperature, epsilon, iterations: as for the batch-wise form; epsilon is in the unit of ``class_cost``.
    """

    def __init__(
        self,
        class_cost: Tensor | None = None,
        temperature: float | Schedule = 2.0,
        *,
        epsilon: float = 0.1,
        iterations: int = 20,
        debiased: bool = False,
    ) -> None:
        def loss(ours: Tensor, theirs: Tensor, **options: Any) -> Tensor:
            cost = 1 - torch.eye(ours.shape[-1]) if class_cost is None else class_cost
            return losses.class_transport(ours, theirs, cost, **options)

        super().__init__(
            loss,
            name="class_transport",
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
            debiased=debiased,
        )


def soft_cross_entropy(temperature: float | Schedule = 2.0) -> Objective:
    """L_KD as released: no T^2, so its pull shrinks as the temperature rises."""
    return LogitObjective(losses.soft_cross_entropy, name="soft_cross_entropy", temperature=temperature, scale="none")


def base(alpha: float = 0.9, temperature: float | Schedule = 2.0) -> Objective:
    """The loss without its transport term: logit distillation as the released trainer does it."""
    return (1 - alpha) * CrossEntropy() + alpha * soft_cross_entropy(temperature)


def sinkd(
    alpha: float = 0.9, temperature: float | Schedule = 2.0, beta: float = 0.8, transport: Objective | None = None
) -> Objective:
    """The whole loss; ``transport`` is :class:`SinkhornTransport` unless given."""
    return base(alpha, temperature) + beta * (transport or SinkhornTransport())


def released_glue(alpha: float = 0.9, temperature: float | Schedule = 2.0, beta: float = 0.8) -> Objective:
    """As the GLUE trainer computes it: a thousandth of the sum over the batch."""
    return sinkd(alpha, temperature, 0.001 * beta, SinkhornTransport(reduction="sum"))


def released_t0(released_axes: bool = False) -> Objective:
    """As the T0 trainer weighs it, over the tokens that count, or over its own axes."""
    transport = SinkhornTransport(reduction="sum", released_axes=released_axes)
    return CrossEntropy() + 0.1 * soft_cross_entropy(1.0) + 0.0008 * transport


def regression(alpha: float = 0.9, temperature: float = 2.0) -> Objective:
    """For numeric targets: squared error of logits / T, without transport, as there is no distribution."""
    soft = LogitObjective(losses.mse, name="logit_mse")
    return (1 - alpha) * TargetMSE() + alpha / temperature**2 * soft


@dataclass(frozen=True)
class AnnealedTemperature(Schedule):
    """``kd_anneal``: ``start`` during the first of ``epochs``, one equal step lower in each, 1 during the last."""

    start: float
    epochs: int

    def __call__(self, progress: float) -> float:
        epoch = min(int(progress * self.epochs + 1e-9), self.epochs - 1)
        return self.start + (1.0 - self.start) * epoch / max(self.epochs - 1, 1)


def token_rows(shape: Sequence[int], mask: Tensor | None, *, most: int | None, seed: int, step: int) -> Tensor:
    """Positions, in the flattened leading axes, of the rows that count: at most ``most``, drawn without replacement.

    A pure function of (mask, seed, step), so that a resumed run and every process of a distributed one draw the same.
    """
    keep = torch.arange(torch.Size(shape).numel()) if mask is None else mask.flatten().cpu().nonzero().squeeze(-1)
    if most is None or len(keep) <= most:
        return keep
    order = uniform(view_seeds(seed, step, keep), 0).argsort()
    return keep[order[:most]].sort().values


def top_classes(student: Tensor, teacher: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Both sides ``[N, C]`` on the union of every row's ``most`` likeliest classes of the teacher."""
    classes = torch.unique(teacher.topk(min(most, teacher.shape[-1]), dim=-1).indices)
    return student[:, classes], teacher[:, classes]


def released_transport(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """L_SD along the axes of the released code: on rows ``[N, C]`` it is L_SD, in plain probabilities.

    On tokens ``[B, L, V]``, as its T0 trainer calls it, the softmax runs over positions, the transport between the
    positions of a sequence, padding included, and one normalisation over the batch.
    """
    ours, theirs = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    cost = torch.cdist(ours, theirs, p=1.0)
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    return (plan * cost).sum()
