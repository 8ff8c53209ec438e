"""Optimiser and learning-rate schedule from a few plain settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
        betas: of adamw and adam.
        rates: (pattern of weights' names, factor of ``lr``) pairs, of which the first that matches counts; names are
            the distiller's, so those of the student begin with ``student.``. Other weights have ``lr`` itself.
            :func:`~limbeck.engine.finetuning.layer_rates` makes the pairs of a layer-wise decay.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    rates: tuple[tuple[str, float], ...] = ()

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
        self, weights: Iterable[nn.Parameter | tuple[str, nn.Parameter]], steps: int, *, fused: bool = True
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """An optimiser over the trainable ones of ``weights`` and a schedule over ``steps`` steps.

        As torch's optimisers do, it takes weights with names or without; ``rates`` need the names.

        ``fused`` kernels unscale gradients by themselves, which forbids clipping under float16.

        Raises:
            UserError: nothing is trainable, or a pattern of ``rates`` matches no name.
        """
        named = dict(
            (str(place), item) if isinstance(item, nn.Parameter) else item for place, item in enumerate(weights)
        )
        trainable = {name: weight for name, weight in named.items() if weight.requires_grad}
        if not trainable:
            raise UserError("trainable parameters", "none", "at least one; unfreeze a part of the student")
        for pattern, _ in self.rates:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise UserError("rates", pattern, named)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for matrices in (True, False):
            for name, weight in trainable.items():
                if (weight.dim() >= 2) == matrices:
                    groups.setdefault((self._rate(name), matrices), []).append(weight)
        settings = [
            {"params": members, "lr": self.lr * rate, "weight_decay": self.weight_decay if matrices else 0.0}
            for (rate, matrices), members in groups.items()
        ]
        if self.name == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(settings, lr=self.lr, momentum=0.9, nesterov=True)
        else:
            # The fused kernels are the same arithmetic in one pass over the weights.
            optimizer = OPTIMIZERS[self.name](settings, lr=self.lr, betas=self.betas, fused=fused)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def _rate(self, name: str) -> float:
        return next((rate for pattern, rate in self.rates if fnmatchcase(name, pattern)), 1.0)

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
