"""Progress of a run: a live bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """Shows how far a run is and what every task gave. ``enabled=False`` says nothing."""

    def __init__(self, title: str, total: int, *, enabled: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._enabled, self._title, self._total, self._done = enabled, title, total, 0
        self._bar: Progress | None = None
        self._task: Any = None
        if enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(
                *columns, TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(escape(self._title), total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        if self._enabled:
            self._console.print(escape(text), style=style or None, highlight=False, soft_wrap=True)

    def step(self, text: str, style: str = "") -> None:
        """One task ended."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        self.say(f"[{self._done}/{self._total}] {text}", style)

    def skip(self, count: int) -> None:
        """Tasks whose outcomes an earlier run left."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
