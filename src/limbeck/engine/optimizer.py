"""Optimiser and learning-rate schedule from a few plain settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from limbeck.errors import UserError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
SCHEDULES = ("cosine", "linear", "constant", "step")


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights move.

    Attributes:
        name: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9, Nesterov).
        lr: the learning rate at its height.
        weight_decay: on weights of two or more axes only; biases and norm scales are not decayed.
        schedule: ``cosine`` or ``linear`` to zero, ``constant``, or ``step`` (a tenth at 60% and again at 85%).
        warmup: share of all steps over which the rate rises from zero.
        betas: of ``adamw`` and ``adam``; networks that chase each other often have no momentum, (0, 0.999).
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError("optimizer", self.name, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise UserError("schedule", self.schedule, SCHEDULES)
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise UserError("lr", self.lr, "a positive number")
        if not 0 <= self.warmup < 1:
            raise UserError("warmup", self.warmup, "a share of all steps, from 0 to below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError("betas", self.betas, "two numbers from 0 to below 1")

    def build(
        self, parameters: Iterable[nn.Parameter], steps: int, *, fused: bool = True
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """An optimiser over the trainable ones of ``parameters`` and a schedule over ``steps`` steps.

        ``fused`` kernels unscale gradients by themselves, which forbids clipping under float16.
        """
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if not trainable:
            raise UserError("trainable parameters", "none", "at least one; unfreeze a part of the student")
        groups = [
            {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.name == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        else:
            # The fused kernels are the same arithmetic in one pass over the weights.
            optimizer = OPTIMIZERS[self.name](groups, lr=self.lr, betas=self.betas, fused=fused)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """The share of ``lr`` in force at ``step`` of ``steps``."""
        warm = int(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        done = min((step - warm) / max(steps - warm, 1), 1.0)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "linear":
            return 1.0 - done
        return 0.1 ** ((done >= 0.6) + (done >= 0.85))


def training_steps(trainer: Trainer) -> int:
    """How many optimiser steps the Trainer will take; schedules need to know.

    Raises:
        UserError: it does not know either, since the loader has no length and only epochs were given.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise UserError(
            "train", "a loader without a length", "a loader with one, or a number of steps instead of epochs"
        )
    return int(steps)


def log_every(trainer: Trainer) -> int:
    """Steps from one log line to the next; 0 logs nothing."""
    return int(getattr(trainer, "log_every_n_steps", 0)) or sys.maxsize
