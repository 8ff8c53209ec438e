"""``fit``: our Lightning Trainer, with a local log, atomic checkpoints and exact resume."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from limbeck.data.loaders import TensorLoader
from limbeck.engine.callbacks import KeepBest, Record, SaveLast, Validate
from limbeck.engine.distiller import Distiller
from limbeck.errors import UserError


@dataclass(frozen=True)
class History:
    """What a training run left behind.

    Attributes:
        lines: the log, one mapping per logged step or validated epoch.
        steps: optimiser steps taken in all.
        seconds: time in training, validation excluded.
        best_epoch: the epoch whose weights were kept, when a selection was asked for.
    """

    lines: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None

    def curve(self, name: str) -> dict[str, list[float]]:
        """``{"x": steps, "y": values}`` of one logged name."""
        points = [(line["step"], line[name]) for line in self.lines if name in line]
        return {"x": [x for x, _ in points], "y": [y for _, y in points]}

    def by_epoch(self, name: str) -> list[float]:
        """The mean of one logged name over each epoch in which it was logged."""
        epochs: dict[float, list[float]] = {}
        for line in self.lines:
            if name in line:
                epochs.setdefault(line["epoch"], []).append(line[name])
        return [sum(values) / len(values) for values in epochs.values()]

    def names(self) -> list[str]:
        """Everything that was logged."""
        return list(dict.fromkeys(name for line in self.lines for name in line if name not in ("step", "epoch")))


def fit(
    distiller: LightningModule,
    train: Iterable[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    validate: Validate | None = None,
    select: str | None = None,
    select_higher: bool = True,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: Callback | bool = False,
    checkpoint_seconds: float = 60.0,
    log_every: int = 10,
    gradient_clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> History:
    """Train a :class:`Distiller` or :class:`PeerDistiller`.

    Args:
        train: a loader of batches; a :class:`~limbeck.data.TensorLoader` resumes at the very next batch.
        epochs, steps: how long; one of the two.
        validate: gets the distiller in eval mode after every epoch and returns named numbers.
        select: the validated name by which the best epoch's weights are kept; the last epoch's by default.
        out: folder of ``last.ckpt`` and ``log.jsonl``; nothing is written without it.
        resume: go on from ``out/last.ckpt`` if it is there.
        seed: of dropout and of everything else drawn while training; loaders have a seed of their own.
        progress: a bar, or a callback that shows one.
        trainer: anything else that Lightning's Trainer takes (``devices``, ``strategy``, ``precision``, ``logger``).
    """
    if (epochs is None) == (steps is None):
        raise UserError("epochs", f"epochs={epochs}, steps={steps}", "exactly one of epochs and steps")
    if select and validate is None:
        raise UserError("select", select, "a validate function that gives it")
    folder = Path(out) if out is not None else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    best = KeepBest(select, higher=select_higher) if select else None
    record = Record(folder, log_every, validate, best)
    save = SaveLast(folder, checkpoint_seconds)
    own = [record, *([best] if best else []), *callbacks, save]
    if isinstance(progress, Callback):
        own.append(progress)
    _quiet()
    torch.manual_seed(seed)
    if isinstance(distiller, Distiller):
        distiller.build(_first(train, distiller))
    runner = Trainer(
        max_epochs=epochs if epochs is not None else -1,
        max_steps=steps if steps is not None else -1,
        callbacks=own,
        enable_checkpointing=True,
        enable_progress_bar=progress is True,
        enable_model_summary=False,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=log_every,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **{"logger": False, "accelerator": "auto", "devices": 1, **trainer},
    )
    last = folder / "last.ckpt" if folder is not None else None
    resumed = last if resume and last is not None and last.exists() else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        runner.fit(distiller, train, ckpt_path=resumed, weights_only=True)
    return History(record.lines, distiller.steps_done, record.seconds, best.epoch if best else None)  # type: ignore[arg-type]


def _first(train: Iterable[Any], distiller: Distiller) -> Any:
    """The first batch, on the student's device, without moving the loader's position."""
    batch = train.peek() if isinstance(train, TensorLoader) else next(iter(train), None)
    if batch is None:
        raise UserError("train", "a loader without batches", "at least one batch")
    return distiller.transfer_batch_to_device(batch, distiller.device, 0)


def _quiet() -> None:
    # The notes on hardware and workers would drown our own lines.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
