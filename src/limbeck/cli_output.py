"""How commands say what they found: tables, lines, JSON."""

from __future__ import annotations

import json
from typing import Any


def terminal() -> Any:
    """Of standard output; wide where it is no terminal."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = 160
    return made


def note(text: str) -> None:
    """One line."""
    print(text)  # noqa: T201


def print_json(value: Any) -> None:
    """Plain values as JSON; paths and the like as their text."""
    print(json.dumps(value, indent=1, default=str))  # noqa: T201
