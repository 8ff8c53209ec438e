"""What a promptable segmenter is trained on: masks, by prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.signals import Batch, Signals, dense

TARGETS = ("truth", "teacher")


class PromptedMasks(Objective):
    """SAM's loss: focal and Dice of the best of the masks that may answer a prompt, and the error of the guessed IoUs.

    Student and teacher signals are ``masks`` (logits ``[B, P, M, H, W]``), ``iou`` (guesses ``[B, P, M]``) and
    ``candidates`` (bool ``[B, P, M]``: which may answer). A row is a prompt ``[B, P]``.

    Args:
        target: ``truth``, the batch's target ``[B, P, H, W]``; or ``teacher``, the mask that the teacher would answer.
        focal, dice, iou: weights; Segment Anything has 20, 1 and 1.
    """

    def __init__(self, target: str = "truth", *, focal: float = 20.0, dice: float = 1.0, iou: float = 1.0) -> None:
        super().__init__()
        if target not in TARGETS:
            raise UserError("target", target, TARGETS)
        self.target, self.weights = target, (focal, dice, iou)
        names = ("masks", "iou", "candidates")
        self.needs = Needs(names, names if target == "teacher" else (), target=target == "truth")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits, guesses, allowed = (dense(student, name) for name in self.needs.student)
        truth = batch["target"] if self.target == "truth" else best_mask(teacher) > 0
        options = row_options(batch)
        rows = options.pop("mask", None)
        rows = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if rows is None else rows
        counted = allowed & rows[..., None]
        target = truth[:, :, None].expand_as(logits)
        focal, dice = (
            loss(logits, target, mask=counted, reduction="none") for loss in (losses.mask_focal, losses.mask_dice)
        )
        wrong = losses.iou_regression(guesses, logits, target, mask=counted, reduction="none")
        # Only the best candidate is corrected, so that the masks may mean different things.
        cost = self.weights[0] * focal + self.weights[1] * dice
        best = cost.detach().masked_fill(~allowed, torch.inf).argmin(-1, keepdim=True)
        values = {
            "focal": self.weights[0] * focal.gather(-1, best)[..., 0],
            "dice": self.weights[1] * dice.gather(-1, best)[..., 0],
            "iou": self.weights[2] * wrong.sum(-1) / allowed.sum(-1).clamp_min(1),
        }
        return {name: losses.reduce_rows(value, mask=rows, **options) for name, value in values.items()}

    def extra_repr(self) -> str:
        return f"target={self.target}, weights={self.weights}"


def best_mask(signals: Signals) -> Tensor:
    """Logits ``[B, P, H, W]`` of the candidate that the network itself thinks best."""
    masks, guesses, allowed = (dense(signals, name) for name in ("masks", "iou", "candidates"))
    best = guesses.masked_fill(~allowed, -torch.inf).argmax(-1)
    return masks.gather(2, best[..., None, None, None].expand(-1, -1, 1, *masks.shape[3:]))[:, :, 0]
