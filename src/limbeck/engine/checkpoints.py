"""Checkpoints that are whole or absent, when they are written, and what makes a resumed run the same run."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import distributed

from limbeck.errors import LimbeckError, UserError
from limbeck.nn.gather import world_size


class Interrupted(LimbeckError):
    """Training stopped on Ctrl-C, with a checkpoint that a later run continues."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; it takes the place of ``path`` when all of it is on the disk.

    Raises:
        LimbeckError: it could not be written; what was at ``path`` before is kept.
    """
    aside = path.with_name(f".{path.name}.aside")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    # A full disk reaches us through torch and safetensors as errors of their own.
    except Exception as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, LimbeckError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error).strip().split("\n")[0]
        raise LimbeckError(f"cannot write {path}: {reason}; what was there before is kept") from error


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, in the same folder, and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as aside, aside.open("wb") as file:
            torch.save(checkpoint, file)


def check_whole(path: Path) -> Path:
    """Refuse a file that cannot be a checkpoint, before any work."""
    if not zipfile.is_zipfile(path):
        raise UserError("resume", path, "a whole checkpoint", "this file is damaged; remove it to start anew")
    return path


class SaveLast(Checkpoint):
    """Writes ``last.ckpt``: at every epoch's end, every ``seconds`` in between, and on Ctrl-C.

    The first Ctrl-C lets the step finish, saves and raises :class:`Interrupted`; the second stops at once. In the
    middle of an epoch nothing is saved if the loader cannot go on there (it has no ``state_dict``), nor at its last
    batch, whose epoch is about to end with a validation that a resumed run would miss; nor between the micro-batches
    of a step.
    """

    def __init__(self, folder: Path | None, seconds: float = 60.0) -> None:
        self.path = folder / "last.ckpt" if folder is not None else None
        self.seconds = seconds
        self._saved = time.monotonic()
        self._where = ""
        self._stop = False
        self._handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved, self._stop = time.monotonic(), False
        # Not earlier: after an error Lightning puts back the handlers that it found when it began to train.
        # Python lets only the main thread own signals.
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self._stop:
            self._release()
            raise KeyboardInterrupt
        self._stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.path is not None and time.monotonic() - self._saved >= self.seconds
        due, stop = _agreed(trainer, due, self._stop)
        # Gradients that are being gathered over micro-batches are in no checkpoint.
        if not (due or stop) or _ends_epoch(trainer) or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if hasattr(trainer.train_dataloader, "state_dict"):
            self._save(trainer)
        if stop:
            self._raise(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if _agreed(trainer, self._stop)[0]:
            self._raise(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.path is None:
            return
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()
        self._where = f"continue from {self.path}, saved at step {trainer.global_step}"

    def _raise(self, trainer: Trainer) -> None:
        nothing = "nothing was saved: no epoch was complete" if self.path else "nothing was saved: no output folder"
        raise Interrupted(f"stopped on request at step {trainer.global_step}; {self._where or nothing}")

    def _release(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()


def _finish_epoch(loop: dict[str, Any]) -> None:
    """Let a run of steps that was saved at the end of an epoch begin the next one.

    Lightning saves before it counts the epoch as completed. A run of epochs is put right when it goes on; one of steps
    goes on inside the finished epoch, with a batch more than it has.
    """
    epoch = loop["epoch_progress"]
    if epoch["current"]["processed"] != epoch["current"]["ready"]:
        return
    for count in ("current", "total"):
        epoch[count]["completed"] = epoch[count]["processed"]
    optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    parts = (loop["epoch_loop.batch_progress"], loop["epoch_loop.scheduler_progress"])
    for part in (*parts, optimizer["step"], optimizer["zero_grad"]):
        part["current"] = dict.fromkeys(part["current"], 0)


def _agreed(trainer: Trainer, *flags: bool) -> tuple[bool, ...]:
    """What any process wants, all do: saving takes part of each of them, and their clocks and signals differ."""
    if world_size() == 1:
        return flags
    wishes = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    distributed.all_reduce(wishes)
    return tuple(bool(wish) for wish in wishes)


def _ends_epoch(trainer: Trainer) -> bool:
    return trainer.is_last_batch or trainer.global_step == trainer.max_steps


class ExactResume(Callback):
    """Keeps the data position and the random generators of every process in the checkpoint.

    A resumed run then sees the batches and draws the numbers that the first would have gone on with. Lightning itself
    restores a loader's position only in the middle of an epoch. It also tells a loader that has ``set_rank`` which
    process of how many it feeds.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._fresh = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state: dict[str, Any] = {"generators": _of_all_processes(_generators())}
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "state_dict"):
            state["loader"] = loader.state_dict()
        else:
            state["drawn_by_loader"] = trainer.is_last_batch
        checkpoint["exact_resume"] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._state, self._fresh = checkpoint.get("exact_resume"), False
        if self._state is None:
            raise LimbeckError("this checkpoint lacks the state of the random generators: nothing can go on exactly")
        if trainer.max_steps != -1:
            _finish_epoch(checkpoint["loops"]["fit_loop"])
        if self._state.get("drawn_by_loader"):
            # A plain DataLoader draws its order when the epoch begins, which a resumed Trainer does long before
            # the first batch.
            self._restore_generators(trainer)
            self._state = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "set_rank"):
            loader.set_rank(trainer.global_rank, trainer.world_size)
        if self._fresh and trainer.global_rank:
            # Dropout must not draw the same mask in every process.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        if self._state is not None and "loader" in self._state:
            loader.load_state_dict(self._state["loader"])
            # Before the next batch is made, whose transform may draw.
            self._restore_generators(trainer)
            self._state = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # A plain loader draws where nobody can tell; what follows its first batch is as it was.
        if self._state is not None:
            self._restore_generators(trainer)
            self._state = None

    def _restore_generators(self, trainer: Trainer) -> None:
        saved = self._state["generators"] if self._state is not None else []
        if len(saved) != trainer.world_size:
            raise UserError("resume", f"{trainer.world_size} processes", f"{len(saved)}, as in the checkpoint")
        state = saved[trainer.global_rank]
        torch.set_rng_state(state["torch"].cpu())
        np.random.set_state(tuple(state["numpy"]))
        random.setstate(_tupled(state["python"]))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])


def _generators() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, cached],  # type: ignore[union-attr]
        "python": _listed(random.getstate()),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _of_all_processes(value: Any) -> list[Any]:
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
