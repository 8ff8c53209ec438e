"""Errors that a user can act on: each names the key, what was given and what is allowed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LimbeckError(Exception):
    """Root of every error that Limbeck raises on purpose; the command prints it without a traceback."""


class UserError(LimbeckError):
    """A wrong input: ``key`` is what to change, ``given`` the offending value, ``allowed`` what would do.

    ``allowed`` is a sentence or the list of valid names; of a long list only the nearest names are shown.
    """

    def __init__(self, key: str, given: object, allowed: Iterable[object] | str = "", hint: str = "") -> None:
        self.key, self.given, self.hint = key, given, hint
        self.allowed = allowed if isinstance(allowed, str) else _choices(str(given), [str(a) for a in allowed])
        shown = given if isinstance(given, str) else repr(given)
        parts = [f"{key}: given {shown!s:.300}" if shown != "" else f"{key}: given an empty value"]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if hint:
            parts.append(hint)
        super().__init__("; ".join(parts))


class MissingExtra(LimbeckError, ImportError):
    """A library of an optional area is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed here and not installed; install it with: pip install 'limbeck[{extra}]'")


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` late, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtra(module.split(".")[0], extra) from error


def first_line(error: BaseException, limit: int = 240) -> str:
    """What another library's exception says, in one line: its first, or its name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:limit] if lines else type(error).__name__


def _choices(given: str, names: list[str]) -> str:
    if len(names) <= 12:
        return ", ".join(names) if names else "nothing is available"
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.3)
    return f"{len(names)} names, the nearest are {', '.join(near)}" if near else f"{', '.join(names[:12])}, ..."
