"""Training on good samples alone: a validation part of them says when to slow down, when to stop and what to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine.callbacks import Plateau
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import History, fit
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.objectives.base import total


@dataclass(frozen=True)
class OneClassRecipe:
    """Adam at a rate that falls on plateaus.

    Attributes:
        epochs: at most.
        schedule: ``constant``, so that plateaus alone lower the rate, or what :class:`OptimizerSettings` names: where
            there is no time to wait for plateaus, ``cosine`` brings the rate to zero at the last epoch.
        factor, patience: the rate is multiplied by ``factor`` once more than ``patience`` epochs in a row brought no
            new lowest validation loss; then the count begins anew.
        stop: training ends after that many epochs in a row without one.
    """

    epochs: int = 100
    batch_size: int = 4
    lr: float = 5e-3
    factor: float = 0.1
    patience: int = 5
    stop: int = 10
    schedule: str = "constant"

    @property
    def optimizer(self) -> OptimizerSettings:
        """What the distiller is to be made with."""
        return OptimizerSettings("adam", self.lr, weight_decay=0.0, schedule=self.schedule)

    def plateau(self) -> Plateau:
        """The callback that lowers the rate and stops."""
        count = self.patience + 1
        return Plateau(
            "loss", higher=False, smallest=0.0, factor=self.factor, patience=count, wait=count,
            stop_after=self.stop - 1, most_cuts=self.epochs,
        )  # fmt: skip


def fit_good(
    distiller: Distiller,
    train: Split,
    validation: Split,
    recipe: OneClassRecipe,
    *,
    summed: bool = True,
    seed: int = 0,
    **more: Any,
) -> History:
    """Train on ``train``; the epoch of the lowest loss on ``validation`` is kept. Nothing anomalous takes part.

    ``summed`` says whether the objective sums over the batch (as ``LevelCosine`` does) or is a mean. ``more`` goes to
    :func:`limbeck.engine.fit`. Short last batches are left out, for BatchNorm.
    """
    if not len(validation):
        raise UserError("validation", "no samples", "good samples that are held out of training")
    loader = TensorLoader(train, min(recipe.batch_size, len(train)), seed=seed, drop_last=True)
    return fit(
        distiller,
        loader,
        epochs=recipe.epochs,
        validate=lambda module: {"loss": mean_loss(distiller, validation, summed=summed)},
        select="loss",
        select_higher=False,
        seed=seed,
        callbacks=[*more.pop("callbacks", ()), recipe.plateau()],
        **more,
    )


@torch.no_grad()
def mean_loss(distiller: Distiller, split: Split, batch_size: int = 64, *, summed: bool = True) -> float:
    """The objective per sample over a split, in the mode that the distiller is in."""
    found = torch.zeros(())
    for batch in split.batches(batch_size):
        batch = distiller.transfer_batch_to_device(batch, distiller.device, 0)
        terms = distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)
        found = found + total(terms).cpu() * (1 if summed else len(batch["id"]))
    return float(found) / len(split)
