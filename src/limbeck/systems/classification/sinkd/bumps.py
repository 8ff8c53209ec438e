"""Part (a) of the sheet: two bumps on 50 ordered bins, and students with a place and a width as their only weights.

What is best is known here, so losses can be judged by where they lead and by what their gradient says when student and
teacher do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck import losses
from limbeck.experiment import Arm, Claim, Exact, Experiment, Outcome
from limbeck.objectives import KL, JensenShannon, LogitObjective, Objective, ReverseKL, total

from .method import ClassTransport, SinkhornTransport

BINS = 50
PLACES = torch.arange(BINS, dtype=torch.float64)
STEPS = (PLACES[:, None] - PLACES).abs()
# Half a bin of blur: small beside the bumps, and 30 rounds reach its plan.
BLUR, ROUNDS = 0.5, 30
WIDTH, ROWS = 1.5, 4
RATE, CLIP, UPDATES = 0.1, 1.0, 400
# Bins per unit of the first weight, so that one rate suits place and width.
UNIT = 10.0
# Where students begin: to the left of everything, and across both bumps.
STARTS = {"": (3.0, 1.0), "overlap_": (29.0, 8.0)}


def teacher_logits(places: Tensor) -> Tensor:
    """Log-probabilities ``[N, BINS]`` of two equal bumps at ``places`` ``[N, 2]``."""
    bumps = torch.exp(-((PLACES - places[..., None]) ** 2) / (2 * WIDTH**2))
    return (0.5 * bumps / bumps.sum(dim=-1, keepdim=True)).sum(dim=1).clamp_min(1e-300).log()


def student_logits(weights: Tensor) -> Tensor:
    """Logits of one bump for each row of ``weights`` ``[N, 2]``: its place / UNIT and the logarithm of its width."""
    place, width = UNIT * weights[:, :1], weights[:, 1:].exp()
    return -((PLACES - place) ** 2) / (2 * width**2)


def start(rows: int, where: str = "") -> Tensor:
    """Students at the beginning."""
    place, width = STARTS[where]
    return torch.tensor([place / UNIT, math.log(width)], dtype=torch.float64).repeat(rows, 1)


def value(objective: Objective, weights: Tensor, teacher: Tensor) -> Tensor:
    """The objective of students with ``weights`` against teacher logits."""
    batch = {"id": torch.arange(len(weights))}
    terms: dict[str, Tensor] = objective({"logits": student_logits(weights)}, {"logits": teacher}, batch)
    return total(terms)


def gradient(objective: Objective, weights: Tensor, teacher: Tensor) -> Tensor:
    """Gradient by the weights of every row, for its own share of the mean: ``[N, 2]``."""
    weights = weights.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(objective, weights, teacher) * len(weights), weights)
    return found


def transport_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Exact cost, in bins, of moving the student's probability to the teacher's, per row of logits."""
    return (student.softmax(dim=-1) - teacher.softmax(dim=-1)).cumsum(dim=-1).abs().sum(dim=-1)


def judge(weights: Tensor, places: Tensor) -> dict[str, float]:
    """How well students do: ``transport_error`` in bins; ``modes``, bumps near which the student has 0.2 or more;
    ``valley``, probability where the teacher has none."""
    student, teacher = student_logits(weights), teacher_logits(places)
    near = (PLACES - places[..., None]).abs() <= 3 * WIDTH
    held = (student.softmax(dim=-1)[:, None] * near).sum(dim=-1)
    return {
        "transport_error": float(transport_error(student, teacher).mean()),
        "modes": float((held >= 0.2).double().sum(dim=-1).mean()),
        "valley": float((student.softmax(dim=-1) * ~near.any(dim=1)).sum(dim=-1).mean()),
    }


def by_classes() -> Objective:
    """Transport between the bins, at the number of bins as its cost: the sample-wise form."""
    return ClassTransport(STEPS, temperature=1.0, epsilon=BLUR, iterations=ROUNDS)


def by_rows() -> Objective:
    """Transport between the rows of the batch at their L1 distance: SinKD's own form."""
    return SinkhornTransport(temperature=1.0)


def vanishing(objective: Callable[[], Objective]) -> Callable[[], float]:
    """Largest entry of the gradient at a start without overlap."""
    places = torch.tensor([[20.0, 38.0], [19.0, 36.0]], dtype=torch.float64)
    return lambda: float(gradient(objective(), start(2), teacher_logits(places)).abs().max())


def far_gradient() -> float:
    """By how much transport between bins falls by other than one bin for every bin that a disjoint student moves."""
    places = torch.tensor([[20.0, 38.0]], dtype=torch.float64)
    narrow = torch.tensor([[10.0 / UNIT, 0.0]], dtype=torch.float64)
    return abs(float(gradient(by_classes(), narrow, teacher_logits(places))[0, 0]) / UNIT + 1.0)


def saturated() -> float:
    """By how much the batch-wise L1 term of disjoint rows differs from 2, wherever the student lies."""
    teacher = teacher_logits(torch.tensor([[30.0, 42.0], [32.0, 44.0]], dtype=torch.float64))
    weights = [start(2) + torch.tensor([shift / UNIT, 0.0], dtype=torch.float64) for shift in (0.0, 5.0, 10.0)]
    return max(abs(float(value(by_rows(), each, teacher)) - 2.0) for each in weights)


def bounded() -> float:
    """By how much Jensen-Shannon at a disjoint start differs from its bound ln 2."""
    teacher = teacher_logits(torch.tensor([[20.0, 38.0]], dtype=torch.float64))
    return abs(float(value(JensenShannon(), start(1), teacher)) - math.log(2))


ABSTRACT, SHEET = "[abstract]", "[ours] the sheet"


class Bumps(Experiment):
    """One student bump against two teacher bumps, from a disjoint start and from one across both.

    The seed moves the teacher's bumps. All losses get the same gradient descent, clipped as in the paper's training:
    Adam would follow the direction of a gradient of 1e-9 as if it were one. Metrics that begin with ``overlap_`` are
    those of the second start, ``gradient_norm`` is that of the disjoint one. The curve shows the norm by separation.
    """

    title = "Two bumps on 50 ordered bins, where the truth is known"
    testbed = "two bumps (synthetic)"
    metric = "transport_error"
    arms = {
        "none": Arm(None, "the student as it starts", "none"),
        "kl": Arm(KL, "forward KL", "rival"),
        "rkl": Arm(ReverseKL, "reverse KL", "rival"),
        "js": Arm(JensenShannon, "Jensen-Shannon", "rival"),
        "tv": Arm(lambda: LogitObjective(losses.total_variation, name="tv"), "total variation", "rival"),
        "sinkhorn": Arm(by_classes, "transport between bins at |i - j|, row by row", "method"),
        "sinkd": Arm(by_rows, "transport between rows at their L1 distance: SinKD's own batch-wise form", "control"),
    }

    def run(self, arm: str, seed: int) -> Outcome:
        generator = torch.Generator().manual_seed(seed)
        jitter = torch.rand(ROWS, 2, generator=generator, dtype=torch.float64)
        places = torch.tensor([19.0, 36.0], dtype=torch.float64) + 4 * jitter
        teacher, setting = teacher_logits(places), self.arms[arm].setting
        metrics: dict[str, float] = {}
        for prefix in STARTS:
            weights = start(ROWS, prefix)
            if setting is not None:
                weights = self.descend(setting(), weights, teacher)
            metrics |= {f"{prefix}{name}": figure for name, figure in judge(weights, places).items()}
        norms = [0.0] if setting is None else [self.norm(setting(), gap) for gap in range(0, 41, 2)]
        metrics["gradient_norm"] = (
            0.0 if setting is None else float(gradient(setting(), start(ROWS), teacher).norm(dim=1).mean())
        )
        return Outcome(metrics, {"gradient_norm_by_separation": norms})

    def descend(self, objective: Objective, weights: Tensor, teacher: Tensor) -> Tensor:
        """Weights after all updates."""
        updates = 20 if self.size == "smoke" else UPDATES
        for update in range(updates):
            found = gradient(objective, weights, teacher)
            found = found * (CLIP / found.norm(dim=1, keepdim=True)).clamp_max(1.0)
            weights = weights - RATE * (1 - update / updates) * found
        return weights

    def norm(self, objective: Objective, gap: int) -> float:
        """Gradient norm of a student of the teacher's width, ``gap`` bins left of a single bump."""
        teacher = teacher_logits(torch.tensor([[45.0, 45.0]], dtype=torch.float64))
        weights = torch.tensor([[(45.0 - gap) / UNIT, math.log(WIDTH)]], dtype=torch.float64)
        return float(gradient(objective, weights, teacher).norm())

    claims = (
        Claim(
            "From a disjoint start, transport between bins ends a bin or more nearer than Jensen-Shannon",
            "sinkhorn",
            "js",
            metric,
            1.0,
            "lower",
            ABSTRACT,
        ),
        Claim(
            "From a start across both bumps, transport between bins ends 0.1 bins or more nearer than forward KL",
            "sinkhorn",
            "kl",
            "overlap_transport_error",
            0.1,
            "lower",
            ABSTRACT,
        ),
        Claim(
            "From a disjoint start, it ends a bin or more nearer than reverse KL",
            "sinkhorn",
            "rkl",
            metric,
            1.0,
            "lower",
            ABSTRACT,
        ),
        Claim(
            "Reverse KL collapses: transport covers more of the modes",
            "sinkhorn",
            "rkl",
            "modes",
            0.5,
            source=ABSTRACT,
        ),
        Claim(
            "KL averages, transport does not: it puts 0.05 less between the bumps",
            "sinkhorn",
            "kl",
            "overlap_valley",
            0.05,
            "lower",
            ABSTRACT,
        ),
        Claim(
            "From a disjoint start, the batch-wise L1 form ends a bin or more nearer than Jensen-Shannon too",
            "sinkd",
            "js",
            metric,
            1.0,
            "lower",
            ABSTRACT,
        ),
        Exact("Jensen-Shannon of disjoint sides is ln 2", bounded, 1e-8, ABSTRACT),
        Exact(
            "The gradient of Jensen-Shannon has vanished at a disjoint start", vanishing(JensenShannon), 1e-8, ABSTRACT
        ),
        Exact("Transport between bins falls by one per bin that a disjoint student moves", far_gradient, 1e-2, SHEET),
        Exact("The batch-wise L1 term of disjoint rows is 2 wherever they are", saturated, 1e-6, SHEET),
        Exact(
            "The gradient of the batch-wise L1 term has vanished there too: so the claim does not carry over",
            vanishing(by_rows),
            1e-6,
            SHEET,
        ),
    )
