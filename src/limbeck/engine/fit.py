"""``fit``: our Lightning Trainer, with a local log, atomic checkpoints and exact resume."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from limbeck.data.loaders import TensorLoader
from limbeck.engine.callbacks import Judge, KeepBest, Record, StopWhenDiverged, Validate
from limbeck.engine.checkpoints import SaveLast, WholeFiles, check_whole
from limbeck.engine.distiller import Distiller
from limbeck.engine.players import Players
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
    validate_every: int | None = None,
    select: str | None = None,
    select_higher: bool = True,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: Callback | bool = False,
    checkpoint_seconds: float = 60.0,
    log_every: int = 10,
    gradient_clip: float | None = None,
    stop_when_diverged: bool = True,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> History:
    """Train a :class:`Distiller`, a :class:`PeerDistiller` or any other :class:`Players`.

    Args:
        train: a loader of batches. A :class:`~limbeck.data.TensorLoader` begins at its epoch 0, resumes at the very
            next batch and gives every process its share. A torch ``DataLoader`` resumes at the beginning of an epoch,
            so that checkpoints are written only there. Anything else gives every process the same batches.
        epochs, steps: how long; one of the two.
        validate: gets the distiller in eval mode after every epoch, its student with the weights that forward passes
            see, and returns named numbers.
        validate_every: validate every so many steps too.
        select: the validated name by which the best epoch's weights are kept, or the best validated step's; the last
            epoch's by default.
        out: folder of ``last.ckpt`` and ``log.jsonl``; nothing is written without it. A checkpoint that is there
            already is removed unless ``resume`` goes on from it.
        resume: go on from ``out/last.ckpt`` if it is there.
        seed: of dropout and of everything else drawn while training; loaders have a seed of their own.
        progress: a bar, or a callback that shows one.
        checkpoint_seconds: time between two checkpoints inside an epoch.
        gradient_clip: largest norm of the gradient.
        callbacks: Lightning's; one with a method ``look`` (:class:`~limbeck.engine.Plateau`) sees every validation.
        stop_when_diverged: raise when the loss and the weights are no longer finite, seen every ``log_every`` steps.
        trainer: anything else that Lightning's Trainer takes (``devices``, ``strategy``, ``precision``, ``logger``).

    Raises:
        LimbeckError: the training diverged.

    With several processes the loss, its gradients and the log are those of the global batch.
    """
    _check(epochs, steps, select, validate, validate_every, out, resume)
    folder = Path(out) if out is not None else None
    last = folder / "last.ckpt" if folder is not None else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if last is not None and not resume:
        # Else a run that ends before its first checkpoint would be resumed from another run's.
        last.unlink(missing_ok=True)
    resumed = check_whole(last) if last is not None and last.exists() else None
    best = KeepBest(select, higher=select_higher) if select else None
    judges = [callback for callback in ([best] if best else []) + [*callbacks] if isinstance(callback, Judge)]
    if judges and validate is None:
        raise UserError("validate", "none", "a function that gives what the callbacks judge epochs by")
    record = Record(folder, log_every, validate, judges, validate_every)
    own: list[Callback] = [record, *([best] if best else [])]
    if stop_when_diverged:
        own.append(StopWhenDiverged(log_every))
    own += [*callbacks, SaveLast(folder, checkpoint_seconds)]
    if isinstance(progress, Callback):
        own.append(progress)
    _quiet()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if isinstance(train, TensorLoader):
        train.set_epoch(0)
    if isinstance(distiller, (Distiller, Players)):
        distiller.build(_first(train, distiller))
    if isinstance(distiller, Players):
        # Lightning clips only where it takes the step itself.
        distiller.gradient_clip, gradient_clip = gradient_clip or distiller.gradient_clip, None
    settings = {"logger": False, "accelerator": "auto", "devices": 1, **trainer}
    runner = Trainer(
        max_epochs=epochs if epochs is not None else -1,
        max_steps=steps if steps is not None else -1,
        callbacks=own,
        enable_checkpointing=True,
        enable_progress_bar=progress is True,
        enable_model_summary=False,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=log_every,
        use_distributed_sampler=True,
        num_sanity_val_steps=0,
        plugins=[WholeFiles(), *settings.pop("plugins", ())],
        strategy=choose_strategy(settings.pop("strategy", "auto"), settings["accelerator"], settings["devices"]),
        **settings,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        runner.fit(distiller, train, ckpt_path=resumed, weights_only=True)
    if best is not None:
        best.restore(distiller)
    done: Any = distiller
    return History(record.lines, done.steps_done, record.seconds, best.epoch if best else None)


def _check(
    epochs: int | None,
    steps: int | None,
    select: str | None,
    validate: Validate | None,
    validate_every: int | None,
    out: object,
    resume: bool,
) -> None:
    if (epochs is None) == (steps is None):
        raise UserError("epochs", f"epochs={epochs}, steps={steps}", "exactly one of epochs and steps")
    for name, value in (("epochs", epochs), ("steps", steps), ("validate_every", validate_every)):
        if value is not None and value < 1:
            raise UserError(name, value, "1 or more")
    if select and validate is None:
        raise UserError("select", select, "a validate function that gives it")
    if resume and out is None:
        raise UserError("resume", "no output folder", "out=, the folder of the run to go on with")


def _first(train: Iterable[Any], distiller: Distiller | Players) -> Any:
    """The first batch, on the student's device, without moving the loader's position."""
    if isinstance(train, Iterator):
        raise UserError("train", type(train).__name__, "a loader that begins anew for every epoch")
    batch = train.peek() if isinstance(train, TensorLoader) else next(iter(train), None)
    if batch is None:
        raise UserError("train", "a loader without batches", "at least one batch")
    return distiller.transfer_batch_to_device(batch, distiller.device, 0)


def choose_strategy(strategy: Any, accelerator: str, devices: Any) -> Any:
    """Lightning's strategy, with two things put right.

    Plain ``ddp`` stops at the second step if a weight of the student has no part in the loss (the pooler of a language
    model, one peer of two), so it is told to expect that. FSDP exists on GPUs only.
    """
    if not isinstance(strategy, str):
        return strategy
    gpus = torch.cuda.is_available() and accelerator != "cpu"
    if strategy.startswith("fsdp") and not gpus:
        raise UserError("strategy", strategy, "ddp on CPU; fsdp needs GPUs")
    several = torch.cuda.device_count() > 1 and gpus if devices in ("auto", -1, "-1") else _number(devices) > 1
    if strategy == "ddp" or (strategy == "auto" and several):
        return "ddp_find_unused_parameters_true"
    return strategy


def _number(devices: Any) -> int:
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def _quiet() -> None:
    # The notes on hardware and workers would drown our own lines.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
