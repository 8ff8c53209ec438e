"""PLD: knowledge distillation as the choices of a Plackett-Luce model (NeurIPS 2025).

The teacher's logits t and the label y give one ranking of the classes: the label first, the others by falling
teacher logit,

    pi_1 = y,   pi_2 .. pi_C = the other classes, t falling.

A student that ranks by choosing, again and again, the best of what is left, with probabilities softmax(s) among
them, pays for every choice what cross-entropy would, weighed by the teacher's probability of the class chosen:

    L = sum_k a_k [ log sum_{l >= k} exp(s_{pi_l}) - s_{pi_k} ],   a_k = softmax(t / tau)_{pi_k}.

The first choice is the cross-entropy on the label, so no second term has to be balanced against it. L is convex in
s, does not see a constant added to s or to t, and its gradient is

    dL/ds_i = sum_{k <= rank(i)} a_k sigma_k(i) - a_{rank(i)},   sigma_k(i) = exp(s_i) / sum_{l >= k} exp(s_{pi_l}).

Other weights give other losses: (1, 0, .., 0) cross-entropy, 1/C ListMLE (over C), 2^(C-k) - 1 p-ListMLE.
:func:`limbeck.losses.plackett_luce` holds the formula, summed from the worst class up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import Needs, Objective, row_options
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Signals, dense

FIRST = ("label", "positive", "teacher")


class PLD(Objective):
    """Plackett-Luce distillation.

    Args:
        temperature: tau of the weights; 1 is the paper's for ImageNet, 4 for CIFAR-100. The student's logits are
            never tempered: that would be another loss.
        weights: of the choices: ``teacher`` (PLD), ``uniform`` (ListMLE over C), ``decreasing`` (p-ListMLE),
            ``one_hot`` (cross-entropy), or a tensor by rank.
        first: who is chosen first: ``label``, the class of ``batch["target"]``; ``positive``, column 0, when a
            row is a query with its positive and its negatives (retrieval); ``teacher``, whomever the teacher
            ranks first, so that no label is read.
        ignore_index: rows with this label do not count (dense tasks).

    Logits are ``[..., C]`` with any leading axes: a batch, the tokens of a text, the pixels of a map whose class
    axis was moved last. A bool ``batch["candidates"]`` ``[..., C]`` leaves out the padding of shorter lists.
    """

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        weights: str | Tensor = "teacher",
        first: str = "label",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if first not in FIRST:
            raise UserError("first", first, FIRST)
        self.temperature, self.weights, self.first, self.ignore_index = temperature, weights, first, ignore_index
        self.needs = Needs(student="logits", teacher="logits", target=first == "label")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        student_logits, teacher_logits = dense(student, "logits"), dense(teacher, "logits")
        if student_logits.shape[-1] < 2:
            raise UserError("student logits", "one class", "two or more: a single one leaves nothing to choose")
        loss = losses.plackett_luce(
            student_logits,
            teacher_logits,
            self.first_choice(batch, student_logits),
            temperature=self.now(self.temperature),
            weights=self.weights,
            candidates=batch.get("candidates"),
            ignore_index=self.ignore_index,
            **row_options(batch),
        )
        return {"pld": loss}

    def first_choice(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """Index of the class or candidate that every row must choose first, or None for the teacher's own."""
        if self.first == "positive":
            return torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        return batch["target"] if self.first == "label" else None

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, weights={self.weights}, first={self.first}"


def label_weight(teacher_logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Mean of a_1, the share of the loss that falls on the label: what to look at before training.

    Near 1, the teacher is so sure that this is cross-entropy; near 0, it is sure of other classes and the labels
    hardly count.
    """
    probabilities = (teacher_logits.double() / temperature).softmax(dim=-1)
    return float(probabilities.gather(-1, target.unsqueeze(-1)).mean())
