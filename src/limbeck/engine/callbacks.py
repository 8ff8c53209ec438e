"""What happens beside the training step: checkpoints, logs, validation, interruption."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import nn

from limbeck.errors import LimbeckError

Validate = Callable[[nn.Module], Mapping[str, float]]


class Interrupted(LimbeckError):
    """Training stopped on Ctrl-C, with a checkpoint that a later run continues."""


class SaveLast(Checkpoint):
    """Writes ``last.ckpt`` aside and renames it: at every epoch's end, every ``seconds``, and on Ctrl-C.

    The first Ctrl-C lets the step finish, saves and raises :class:`Interrupted`; the second stops at once.
    """

    def __init__(self, folder: Path | None, seconds: float = 60.0) -> None:
        self.path = folder / "last.ckpt" if folder is not None else None
        self.seconds = seconds
        self._saved = time.monotonic()
        self._stop = False
        self._handler: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = time.monotonic()
        # Python lets only the main thread own signals.
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self._stop:
            signal.signal(signal.SIGINT, self._handler)
            raise KeyboardInterrupt
        self._stop = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        due = self.path is not None and time.monotonic() - self._saved >= self.seconds
        if due or self._stop:
            self._save(trainer)
        if self._stop:
            where = f"continue from {self.path}" if self.path is not None else "nothing was saved: no output folder"
            raise Interrupted(f"stopped on request at step {trainer.global_step}; {where}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.path is None:
            return
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            trainer.save_checkpoint(aside)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                os.replace(aside, self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise LimbeckError(
                f"cannot write the checkpoint {self.path}: {error.strerror}; the one before is kept"
            ) from error
        self._saved = time.monotonic()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


class ExactResume(Callback):
    """Keeps the data position and the random generators in the checkpoint.

    A resumed run then sees the batches and draws the numbers that the first would have gone on with. Lightning itself
    restores a loader's position only in the middle of an epoch.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kind, keys, position, has_gauss, cached = np.random.get_state()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, [int(key) for key in keys], position, has_gauss, cached],  # type: ignore[union-attr]
            "python": _listed(random.getstate()),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        loader = trainer.train_dataloader
        if hasattr(loader, "state_dict"):
            state["loader"] = loader.state_dict()
        checkpoint["exact_resume"] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint.get("exact_resume")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state is not None and "loader" in self._state:
            trainer.train_dataloader.load_state_dict(self._state["loader"])  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Only now: setting up loaders draws numbers too.
        if self._state is None:
            return
        torch.set_rng_state(self._state["torch"].cpu())
        np.random.set_state(tuple(self._state["numpy"]))
        random.setstate(_tupled(self._state["python"]))
        if "cuda" in self._state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._state["cuda"]])
        self._state = None


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


class KeepBest(Callback):
    """Remembers the weights of the epoch that was best on the validation metric, and puts them back at the end."""

    def __init__(self, metric: str, *, higher: bool = True) -> None:
        self.metric, self.sign = metric, 1.0 if higher else -1.0
        self.best: float | None = None
        self.epoch = 0
        self._weights: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.epoch, self._weights = state["best"], state["epoch"], state["weights"]

    def look(self, values: Mapping[str, float], epoch: int, pl_module: LightningModule) -> None:
        """Compare this epoch with the best so far."""
        if self.metric not in values:
            raise LimbeckError(f"select: given {self.metric}; allowed: {', '.join(values)}")
        value = self.sign * values[self.metric]
        if self.best is None or value > self.best:
            self.best, self.epoch = value, epoch
            self._weights = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._weights:
            pl_module.load_state_dict(self._weights)


class Record(Callback):
    """The local log: losses every ``every`` steps and validation after each epoch, in memory and as JSON lines.

    On resume the lines behind the checkpoint's step are dropped, since those steps are taken again.
    """

    def __init__(
        self, folder: Path | None, every: int, validate: Validate | None = None, best: KeepBest | None = None
    ) -> None:
        self.path = folder / "log.jsonl" if folder is not None else None
        self.every, self.validate, self.best = every, validate, best
        self.lines: list[dict[str, float]] = []
        self._file: Any = None
        self._started = 0.0
        self._validation_seconds = 0.0
        self._seconds_before = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines, self._seconds_before = list(state["lines"]), state["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of training, without validation, over all runs of a resumed training."""
        running = time.perf_counter() - self._started if self._started else 0.0
        return self._seconds_before + running - self._validation_seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        if self.path is not None and trainer.is_global_zero:
            aside = self.path.with_suffix(".aside")
            aside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(aside, self.path)
            self._file = self.path.open("a", buffering=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if pl_module.steps_done % self.every == 0 and (not self.lines or self.lines[-1]["step"] < pl_module.steps_done):
            terms = {name: float(value) for name, value in pl_module.latest_terms.items()}
            self._write({"step": pl_module.steps_done, "epoch": trainer.current_epoch, **terms})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.validate is None:
            return
        start = time.perf_counter()
        pl_module.eval()
        # Validation draws nothing from the generators that training will go on with.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            values = {name: float(value) for name, value in self.validate(pl_module).items()}
        pl_module.train()
        if self.best is not None:
            self.best.look(values, trainer.current_epoch + 1, pl_module)
        self._validation_seconds += time.perf_counter() - start
        line = {f"validation/{name}": value for name, value in values.items()}
        self._write({"step": pl_module.steps_done, "epoch": trainer.current_epoch + 1, **line})

    def _write(self, line: dict[str, float]) -> None:
        self.lines.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds_before = self.seconds
        self._started, self._validation_seconds = 0.0, 0.0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
