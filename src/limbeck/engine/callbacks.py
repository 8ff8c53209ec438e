"""What happens beside the training step: the log, validation, and keeping the best epoch."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from limbeck.engine.checkpoints import replacing
from limbeck.errors import LimbeckError, UserError
from limbeck.nn.gather import share_buffers, sum_over_processes, world_size
from limbeck.nn.mode import evaluating

Validate = Callable[[nn.Module], Mapping[str, float]]


@runtime_checkable
class Judge(Protocol):
    """What wants to see the numbers of every validation: after each epoch, and inside it under ``validate_every``."""

    def look(self, values: Mapping[str, float], epoch: int, pl_module: LightningModule) -> None:
        """``epoch`` counts from 1; the Trainer is ``pl_module.trainer``."""


class KeepBest(Callback):
    """Remembers the weights of the epoch that was best on the validation metric; :meth:`restore` puts them back."""

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
        """Compare this epoch with the best so far; NaN is worse than any number."""
        if self.metric not in values:
            raise UserError("select", self.metric, values)
        value = -math.inf if math.isnan(values[self.metric]) else self.sign * values[self.metric]
        if self.best is None or value > self.best:
            self.best, self.epoch = value, epoch
            self._weights = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}

    def restore(self, pl_module: LightningModule) -> None:
        """Give the network the best epoch's weights."""
        if self._weights:
            pl_module.load_state_dict(self._weights)


class Plateau(Callback):
    """Cuts the learning rate when the validation metric stands still, and ends a training that went stale.

    Give it to :func:`~limbeck.engine.fit` as a callback, with a ``validate`` function and a constant schedule. After
    ``patience`` epochs without a gain of more than ``smallest`` the rate is multiplied by ``factor``, then not again
    for ``wait`` epochs. Training ends after more than ``stop_after`` stale epochs or more than ``most_cuts`` cuts.
    With ``validate_every`` every validation counts as an epoch.

    Unlike torch's ``ReduceLROnPlateau`` it leaves the count of stale epochs alone when it cuts, so that a plateau that
    goes on is cut every ``wait`` epochs. The defaults are those of Polino et al., 2018.
    """

    def __init__(
        self,
        metric: str = "accuracy",
        *,
        higher: bool = True,
        smallest: float = 1e-3,
        patience: int = 10,
        wait: int = 8,
        factor: float = 0.5,
        stop_after: int = 30,
        most_cuts: int = 11,
    ) -> None:
        if not 0 < factor < 1:
            raise UserError("factor", factor, "a number between 0 and 1")
        self.metric, self.sign = metric, 1.0 if higher else -1.0
        self.smallest, self.patience, self.wait, self.factor = smallest, patience, wait, factor
        self.stop_after, self.most_cuts = stop_after, most_cuts
        self.state: dict[str, float] = {"best": -math.inf, "stale": 0, "waiting": 0, "cuts": 0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)

    def look(self, values: Mapping[str, float], epoch: int, pl_module: LightningModule) -> None:
        """Take notice of an epoch's validation; NaN is no gain."""
        if self.metric not in values:
            raise UserError("plateau", self.metric, values)
        value, now = self.sign * values[self.metric], self.state
        if value - self.smallest > now["best"]:
            now["best"], now["stale"] = value, 0
        else:
            now["stale"] += 1
        now["waiting"] = max(now["waiting"] - 1, 0)
        if now["stale"] >= self.patience and not now["waiting"]:
            now["waiting"], now["cuts"] = self.wait, now["cuts"] + 1
            self._cut(pl_module.trainer)
        if now["stale"] > self.stop_after or now["cuts"] > self.most_cuts:
            pl_module.trainer.should_stop = True

    def _cut(self, trainer: Trainer) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
        # Schedules compute the rate anew from their base at every step.
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [rate * self.factor for rate in scheduler.base_lrs]


class StopWhenDiverged(Callback):
    """Ends a training whose loss and weights are no longer numbers: nothing that follows could mend it.

    It looks every ``every`` steps. A loss alone does not count, since under float16 one batch may overflow and its
    step is skipped.

    Raises:
        LimbeckError: naming the step, the terms of the loss that are not finite, and what usually helps.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        step = pl_module.steps_done
        if not step or step % self.every:
            return
        lost = [name for name, value in pl_module.latest_terms.items() if not torch.isfinite(value).all()]
        if lost and not all(torch.isfinite(weights).all() for weights in pl_module.parameters()):
            raise LimbeckError(
                f"training diverged: {', '.join(lost)} and the weights are not finite at step {step}; a lower learning "
                "rate, a gradient clip or 32-bit precision usually helps"
            )


class Record(Callback):
    """The local log: losses every ``every`` steps and validation after each epoch, in memory and as JSON lines.

    With ``validate_every`` there is validation inside an epoch too, every so many steps.

    On resume the lines behind the checkpoint's step are dropped, since those steps are taken again.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int,
        validate: Validate | None = None,
        judges: Sequence[Judge] = (),
        validate_every: int | None = None,
    ) -> None:
        self.path = folder / "log.jsonl" if folder is not None else None
        self.every, self.validate, self.judges = every, validate, judges
        self.validate_every = validate_every
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
            with replacing(self.path) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            self._file = self.path.open("a", buffering=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        step = pl_module.steps_done
        # Under gradient accumulation most batches do not end a step.
        if step and step % self.every == 0 and (not self.lines or self.lines[-1]["step"] < step):
            self._write({"step": step, "epoch": trainer.current_epoch, **_over_processes(pl_module.latest_terms)})
        # The last step of an epoch is validated at its end.
        due = self.validate_every and step and step % self.validate_every == 0 and not trainer.is_last_batch
        if due and not self._validated(step):
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: Any) -> None:
        share_buffers(pl_module)
        if self.validate is None:
            return
        start = time.perf_counter()
        in_view = getattr(pl_module, "in_view", contextlib.nullcontext)
        # Validation draws nothing from the generators that training will go on with.
        with evaluating(pl_module), torch.no_grad(), torch.random.fork_rng(devices=[]), in_view():
            values = {name: float(value) for name, value in self.validate(pl_module).items()}
        for judge in self.judges:
            judge.look(values, trainer.current_epoch + 1, pl_module)
        self._validation_seconds += time.perf_counter() - start
        line = {f"validation/{name}": value for name, value in values.items()}
        self._write({"step": pl_module.steps_done, "epoch": trainer.current_epoch + 1, **line})

    def _validated(self, step: int) -> bool:
        last = self.lines[-1] if self.lines else {}
        return last.get("step") == step and any(name.startswith("validation/") for name in last)

    def _write(self, line: dict[str, float]) -> None:
        self.lines.append(line)
        if self._file is not None:
            try:
                self._file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise LimbeckError(f"cannot write the log {self.path}: {error.strerror}") from error

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds_before = self.seconds
        self._started, self._validation_seconds = 0.0, 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            # What could not be written has been told.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _over_processes(terms: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Every process has its share of the loss; their mean is the loss of the whole batch."""
    if world_size() == 1 or not terms:
        return {name: float(value) for name, value in terms.items()}
    means = sum_over_processes(torch.stack([value.float() for value in terms.values()])) / world_size()
    return dict(zip(terms, means.tolist(), strict=True))
