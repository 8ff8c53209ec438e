"""What the paper proves about the loss, measured in double precision against the formula written out in loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.losses import list_mle, plackett_luce

CASES, CLASSES = 12, 7
SPREADS = (0.1, 1.0, 10.0)


def cases() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Student and teacher logits ``[1, C]`` of several spreads, and a label that the teacher may rank low."""
    generator = torch.Generator().manual_seed(0)
    for case in range(CASES):
        spread = SPREADS[case % 3]
        student, teacher = (torch.randn(1, CLASSES, generator=generator).double() * spread for _ in range(2))
        yield student, teacher, torch.randint(CLASSES, (1,), generator=generator)


def ranking(teacher: list[float], label: int) -> list[int]:
    """The label, then the other classes by falling teacher logit."""
    return [label, *sorted((i for i in range(len(teacher)) if i != label), key=lambda i: -teacher[i])]


def choice_probability(student: list[float], order: list[int], step: int, chosen: int) -> float:
    """sigma_k(i): the probability of ``chosen`` among what is left at ``step``."""
    return math.exp(student[chosen]) / math.fsum(math.exp(student[i]) for i in order[step:])


def by_choices(student: list[float], order: list[int], weights: list[float]) -> float:
    """The loss, choice by choice."""
    costs = (-math.log(choice_probability(student, order, step, chosen)) for step, chosen in enumerate(order))
    return math.fsum(weight * cost for weight, cost in zip(weights, costs, strict=True))


def largest(deviation: Callable[[Tensor, Tensor, Tensor], float]) -> Callable[[], float]:
    """The check that measures ``deviation`` in every case and gives the worst."""
    return lambda: max(deviation(*case) for case in cases())


def _listed(student: Tensor, teacher: Tensor, label: Tensor) -> tuple[list[float], list[int], list[float]]:
    """Scores, ranking and teacher's weights of a case as plain numbers."""
    order = ranking(teacher[0].tolist(), int(label))
    return student[0].tolist(), order, teacher.softmax(-1)[0, order].tolist()


def _formula(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    return abs(float(plackett_luce(student, teacher, label)) - by_choices(*_listed(student, teacher, label)))


def _gradient(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    scores, order, weights = _listed(student, teacher, label)
    free = student.clone().requires_grad_()
    (measured,) = torch.autograd.grad(plackett_luce(free, teacher, label), free)
    return max(
        abs(
            math.fsum(weights[k] * choice_probability(scores, order, k, chosen) for k in range(rank + 1))
            - weights[rank]
            - float(measured[0, chosen])
        )
        for rank, chosen in enumerate(order)
    )


def curvature(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Eigenvalues of the Hessian in the student's logits, rising."""
    hessian = torch.func.hessian(lambda free: plackett_luce(free[None], teacher, label))(student[0])
    eigenvalues: Tensor = torch.linalg.eigvalsh(hessian)
    return eigenvalues


def _convex(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    return max(0.0, -float(curvature(student, teacher, label)[0]))


def _smooth(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    # Every choice is a log-sum-exp, whose curvature is at most 1/2; the weights add up to 1.
    return max(0.0, float(curvature(student, teacher, label)[-1]) - 0.5)


def _translation(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    moved = plackett_luce(student + 3.7, teacher - 11.3, label)
    return abs(float(moved - plackett_luce(student, teacher, label)))


def _cross_entropy(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    first_only = plackett_luce(student, teacher, label, weights="one_hot")
    return abs(float(first_only - functional.cross_entropy(student, label)))


def _sure_teacher(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    sure = teacher.scatter(-1, label[:, None], 1e4)
    return abs(float(plackett_luce(student, sure, label) - functional.cross_entropy(student, label)))


def _list_mle(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    scores, order, _ = _listed(student, teacher, label)
    expected = by_choices(scores, order, [1.0] * CLASSES)
    uniform = CLASSES * float(plackett_luce(student, teacher, label, weights="uniform"))
    return max(abs(uniform - expected), abs(float(list_mle(student, teacher, label)) - expected))


def _p_list_mle(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    scores, order, _ = _listed(student, teacher, label)
    falling = [2.0 ** (CLASSES - k) - 1 for k in range(1, CLASSES + 1)]
    expected = by_choices(scores, order, [weight / sum(falling) for weight in falling])
    return abs(float(plackett_luce(student, teacher, label, weights="decreasing")) - expected)


def _low_precision(student: Tensor, teacher: Tensor, label: Tensor) -> float:
    far = student * 1e4
    exact, quick = (float(plackett_luce(far.to(kind), teacher, label)) for kind in (torch.float64, torch.float32))
    return abs(quick - exact) / max(abs(exact), 1.0)


formula = largest(_formula)
gradient = largest(_gradient)
convexity = largest(_convex)
smoothness = largest(_smooth)
translation = largest(_translation)
cross_entropy = largest(_cross_entropy)
sure_teacher = largest(_sure_teacher)
list_mle_case = largest(_list_mle)
p_list_mle_case = largest(_p_list_mle)
low_precision = largest(_low_precision)
