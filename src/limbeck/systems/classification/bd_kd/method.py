"""BD-KD: two networks learn together, and each sample decides which way the student should follow.

With p_s, p_t the distributions of student and teacher at temperature T, H their entropies at temperature 1:

    student   L_s = CE(y, z_s) + T^2 mean_i [ nu_i KL(p_t || p_s) + delta_i KL(p_s || p_t) ]      z_t constant
    teacher   L_t = CE(y, z_t) + T^2 mean_i KL(p_s || p_t)                                        z_s constant
    gate      (nu, delta) = (1, 2) where H_s > H_t     the student is less sure: reverse KL sharpens it
                            (2, 1) where H_s < H_t     the student is surer: forward KL spreads it
                            (1, 1) at a tie

Forward KL makes the student cover every class that the teacher allows, reverse KL makes it commit to the teacher's
modes; the gate favours the one that corrects its confidence. The teacher's term is that of deep mutual learning.

"BD-KD: Balancing the Divergences for Online Knowledge Distillation", 2022. There is no official code, and only the
abstract was at hand: direction and magnitudes of the gate, T and the weights are a reconstruction, and all are
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.engine import OptimizerSettings, PeerDistiller
from limbeck.errors import UserError
from limbeck.losses.reduce import full_precision, reduce_rows
from limbeck.objectives import KL, CrossEntropy, Needs, Objective, row_options
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, dense

Balance = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EntropyGate:
    """(nu, delta) of every sample from its entropy gap H_s - H_t.

    ``sharpness`` None jumps from ``low`` to ``high``, and a tie gives ``low`` to both; a number k gives the smooth gate
    ``low + (high - low) sigmoid(k gap)``. ``inverted`` exchanges the two: the control, which amplifies what the
    student does already.
    """

    low: float = 1.0
    high: float = 2.0
    sharpness: float | None = None
    inverted: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UserError("gate weights", f"low={self.low}, high={self.high}", "0 <= low <= high")

    def __call__(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        sharpen = -gap if self.inverted else gap
        return self._weight(-sharpen), self._weight(sharpen)

    def _weight(self, need: Tensor) -> Tensor:
        chosen = (need > 0).to(need.dtype) if self.sharpness is None else torch.sigmoid(self.sharpness * need)
        return self.low + (self.high - self.low) * chosen


@dataclass(frozen=True)
class FixedBalance:
    """The same (nu, delta) for every sample: (1, 0) is deep mutual learning, (0, 1) its reverse, (1, 1) symmetric."""

    forward: float = 1.0
    reverse: float = 1.0

    def __call__(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(gap, self.forward), torch.full_like(gap, self.reverse)


class BalancedDivergence(Objective):
    """The student's loss.

    Args:
        balance: the weights of the two divergences, from the entropy gap; see the two classes above.
        temperature: T of the divergences. The gate compares entropies at temperature 1: a high one hides the gap.
        warmup: share of training on the labels alone, since the gate of two untrained networks is a coin.
        floor: log p_t counts as no less than this in the reverse KL, which is unbounded otherwise.

    Logs ``entropy_gap`` (mean of H_s - H_t) and ``gate_share`` (share of samples with H_s > H_t).
    """

    needs = Needs(student="logits", teacher="logits", target=True)

    def __init__(
        self,
        balance: Balance | None = None,
        temperature: float | Schedule = 2.0,
        *,
        warmup: float = 0.0,
        floor: float = -30.0,
    ) -> None:
        super().__init__()
        self.balance = balance or EntropyGate()
        self.temperature, self.warmup, self.floor = temperature, warmup, floor

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs, rows = dense(student, "logits"), dense(teacher, "logits"), row_options(batch)
        nu, delta = self.balance(self.entropy_gap(ours, theirs, rows.get("mask")))
        hard = losses.cross_entropy(ours, batch["target"], **rows)
        if self.progress < self.warmup:
            return {"cross_entropy": hard}

        temperature, weight = self.now(self.temperature), rows.pop("weight", 1.0)
        forward = losses.forward_kl(ours, theirs, temperature=temperature, weight=nu * weight, **rows)
        bounded = (full_precision(theirs) / temperature).log_softmax(dim=-1).clamp_min(self.floor)
        reverse = losses.reverse_kl(
            ours, bounded, temperature=temperature, teacher_temperature=1.0, weight=delta * weight, **rows
        )
        return {"cross_entropy": hard, "forward_kl": forward, "reverse_kl": reverse}

    @torch.no_grad()
    def entropy_gap(self, ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
        """H_s - H_t of every sample in nats: a constant for the gradient."""
        student, teacher = (losses.entropy(logits, mask=mask, reduction="none") for logits in (ours, theirs))
        gap = student - teacher
        self.observe(entropy_gap=reduce_rows(gap, mask=mask), gate_share=reduce_rows((gap > 0).float(), mask=mask))
        return gap


def mutual_learning(temperature: float | Schedule = 2.0) -> Objective:
    """The teacher's loss: CE + T^2 KL(other || own), one side of deep mutual learning (Zhang et al., 2018)."""
    return CrossEntropy() + KL(temperature)


def bd_kd(
    students: Mapping[str, nn.Module],
    teachers: Mapping[str, nn.Module],
    *,
    balance: Balance | None = None,
    temperature: float | Schedule = 2.0,
    warmup: float = 0.0,
    optimizers: OptimizerSettings | Mapping[str, OptimizerSettings] | None = None,
    update: str = "simultaneous",
) -> PeerDistiller:
    """Networks that learn together, ready for :func:`limbeck.engine.fit` or a Lightning Trainer.

    With more than two networks each learns from all others, and its pairwise terms are averaged over them.
    """
    objectives: dict[str, Objective] = {}
    objectives |= {name: BalancedDivergence(balance, temperature, warmup=warmup) for name in students}
    objectives |= {name: mutual_learning(temperature) for name in teachers}
    if len(objectives) < len(students) + len(teachers):
        raise UserError("teachers", sorted(teachers), f"names other than those of the students, {sorted(students)}")
    return PeerDistiller({**students, **teachers}, objectives, optimizers=optimizers, update=update)
