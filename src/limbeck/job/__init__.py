"""The main job: distil a teacher into a student, measure both, and leave the proof (imported late)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.job.run import distill
    from limbeck.job.settings import Settings

_HOMES = {"Settings": "settings", "distill": "run"}

__all__ = ["Settings", "distill"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
