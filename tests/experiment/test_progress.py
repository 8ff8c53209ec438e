"""Progress in a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from limbeck.experiment.progress import RunProgress


def shown(*, terminal: bool, enabled: bool = True) -> str:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=100)
    with RunProgress("a [run]", 4, enabled=enabled, console=console) as progress:
        progress.skip(2)
        progress.step("kd seed 1: accuracy 0.5")
        progress.step("kd [seed 2] FAILED", "red")
    return said.getvalue()


def test_a_terminal_gets_a_bar_and_the_lines() -> None:
    text = shown(terminal=True)
    assert "a [run]" in text
    assert "4/4" in text
    assert "kd seed 1: accuracy 0.5" in text


def test_anything_else_gets_numbered_lines() -> None:
    assert shown(terminal=False).splitlines() == ["[3/4] kd seed 1: accuracy 0.5", "[4/4] kd [seed 2] FAILED"]


def test_a_silent_run_says_nothing() -> None:
    assert shown(terminal=True, enabled=False) == ""
