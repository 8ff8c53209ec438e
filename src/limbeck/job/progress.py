"""Progress bars while a distillation works; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

#: Seconds between two lines of a bar that is written to a file.
_PLAIN_EVERY = 15.0


class Progress:
    """Shows what is being done; ``quiet`` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        # Bars go to standard error, so that the results of --json stay alone on standard output.
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = 120

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar; the function it gives takes how much is done."""
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total)
            return
        columns = (
            TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with RichProgress(*columns, console=self.console) as shown:
            task = shown.add_task(title, total=total, note="")
            yield lambda done: shown.update(task, completed=done)

    def callback(self, title: str, total: int) -> Callback:
        """A Lightning callback that shows the steps of one training with its loss and last validation."""
        return _Steps(self, title, total)


class _Lines:
    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.shown = self.started = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done >= self.total or now - self.shown >= _PLAIN_EVERY:
            self.shown = now
            self.console.print(f"{self.title}: {done}/{self.total}, {now - self.started:.0f} s", highlight=False)


class _Steps(Callback):
    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self.progress, self.title, self.total = progress, title, total
        self._context: Any = None
        self._advance: Callable[[int], None] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._context = self.progress.bar(self.title, self.total)
        self._advance = self._context.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if self._advance is not None:
            self._advance(pl_module.steps_done)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._context is not None:
            self._context.__exit__(*sys.exc_info())
            self._context = None
