"""Asking the teacher about some samples only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.objectives.base import Needs, Objective
from limbeck.objectives.supervised import CrossEntropy
from limbeck.signals import Batch, Signals, dense

ASK = ("always", "uncertain", "random", "wrong")


class AskTeacher(Objective):
    """``asked`` on the samples for which the teacher is asked, ``alone`` on the others.

    Args:
        asked: the objective with the teacher, such as ``0.3 * CrossEntropy() + 0.7 * KL(2.0)``.
        ask: ``always``; ``uncertain``: where the student's entropy is above ``cutoff``; ``random``: with the
            probability entropy / log2(C); ``wrong``: where the student's best class is not the label.
        cutoff: bits.
        alone: cross-entropy on the labels by default.

    Each of the two is a mean over its own samples and they are added, not weighed by how many samples they have
    (Polino et al., 2018, as released): a single sample that is asked about weighs as much as all others together. A row
    is a sample or a token; the batch's mask still holds. ``asked_share`` is logged.
    """

    def __init__(
        self, asked: Objective, ask: str = "always", *, cutoff: float = 0.5, alone: Objective | None = None
    ) -> None:
        super().__init__()
        if ask not in ASK:
            raise UserError("ask", ask, ASK)
        self.asked, self.alone = asked, alone or CrossEntropy()
        self.ask, self.cutoff = ask, cutoff
        self.needs = asked.needs | self.alone.needs | Needs("logits", target=ask == "wrong")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        if "denominator" in batch:
            raise UserError("batch", "denominator", "none: each part is a mean over its own samples")
        chosen = self.chosen(dense(student, "logits").detach(), batch)
        counts = batch.get("mask")
        counts = torch.ones_like(chosen) if counts is None else counts
        self.observe(asked_share=(chosen & counts).sum() / counts.sum().clamp_min(1))
        if self.ask == "always":
            whole: dict[str, Tensor] = self.asked(student, teacher, batch)
            return whole
        terms: dict[str, Tensor] = self.asked(student, teacher, {**batch, "mask": chosen & counts})
        rest: dict[str, Tensor] = self.alone(student, teacher, {**batch, "mask": ~chosen & counts})
        return {**terms, **{f"alone_{name}": value for name, value in rest.items()}}

    def chosen(self, logits: Tensor, batch: Batch) -> Tensor:
        """Whether the teacher is asked, bool per row of ``logits`` ``[..., C]``."""
        if self.ask == "always":
            return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        if self.ask == "wrong":
            wrong: Tensor = logits.argmax(dim=-1) != batch["target"]
            return wrong
        log_probs = logits.float().log_softmax(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1) / math.log(2)
        if self.ask == "uncertain":
            return entropy > self.cutoff
        return torch.rand_like(entropy) < entropy / math.log2(logits.shape[-1])

    def build(self, student: Signals, teacher: Signals) -> None:
        self.asked.build(student, teacher)
        self.alone.build(student, teacher)

    def extra_repr(self) -> str:
        return f"ask={self.ask}"
