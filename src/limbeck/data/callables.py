"""``py:PACKAGE.MODULE:CALLABLE``: the one way in which a reference runs code, and only when that is allowed."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from limbeck.errors import UserError

FORM = "py:PACKAGE.MODULE:CALLABLE"


def call_reference(rest: str, *, key: str, allow_py: bool, offered: Mapping[str, Any] | None = None) -> Any:
    """Import and call what stands behind ``py:``.

    Args:
        rest: ``PACKAGE.MODULE:CALLABLE``; the module is also looked for in the working folder.
        allow_py: the user's consent, the flag ``--allow-py``.
        offered: values for parameters of these names, passed only if the callable has them.

    Raises:
        UserError: not allowed, no such module or callable, or parameters that nothing fills.
    """
    reference = f"py:{rest}"
    if not allow_py:
        raise UserError(key, reference, "py: references with the flag --allow-py (allow_py=True)", "they run code")
    module_name, colon, path = rest.partition(":")
    if not (colon and module_name and path):
        raise UserError(key, reference, FORM)
    with _working_folder():
        function = _find(module_name, path, key, reference)
        return function(**_arguments(function, dict(offered or {}), key, reference))


def _find(module_name: str, path: str, key: str, reference: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is missing inside the user's module is another matter than the user's module missing.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = f"no module {error.name} in the working folder or among the installed ones"
        raise UserError(key, reference, FORM, hint) from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = sorted(other for other in vars(found) if not other.startswith("_"))
            raise UserError(f"{key} {reference}", name, public)
        found = getattr(found, name)
    if not callable(found):
        raise UserError(key, reference, "something that can be called", f"{path} is a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _arguments(function: Callable[..., Any], offered: dict[str, Any], key: str, reference: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = {p.name: offered[p.name] for p in plain if p.name in offered}
    missing = [p.name for p in plain if p.default is p.empty and p.name not in given]
    if missing:
        fillable = f"; of these are known: {', '.join(offered)}" if offered else ""
        raise UserError(key, reference, f"a callable that works without {missing[0]}{fillable}")
    return given


@contextmanager
def _working_folder() -> Iterator[None]:
    # The command's own folder is on the path of `python -m`, not on that of an installed command.
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
