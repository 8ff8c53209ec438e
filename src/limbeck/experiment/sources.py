"""Which source files made an outcome, so that outcomes of different code never share a table."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_seen: dict[str, str] = {}


def loaded_sources(module: str) -> dict[str, str]:
    """SHA-256 of every loaded file of Limbeck and of the folder of ``module``, as first seen."""
    folder = _folder_of(module)
    for loaded in list(sys.modules.values()):
        file = getattr(loaded, "__file__", None)
        name = _name(Path(file), folder) if file and getattr(loaded, "__name__", "") != "__main__" else ""
        if name and name not in _seen:
            # A process goes on with what it loaded, whatever becomes of the file afterwards.
            _seen[name] = _digest(_place(name, folder))
    return dict(_seen)


def changed_sources(module: str, recorded: Mapping[str, str]) -> list[str]:
    """Names of the recorded files that are different now."""
    folder = _folder_of(module)
    return sorted(name for name, digest in recorded.items() if _digest(_place(name, folder)) != digest)


def fingerprint(recorded: Mapping[str, str]) -> str:
    """One hash for all."""
    return hashlib.sha256("".join(f"{name} {recorded[name]}\n" for name in sorted(recorded)).encode()).hexdigest()


def _folder_of(module: str) -> Path:
    return Path(str(sys.modules[module].__file__)).resolve().parent


def _name(file: Path, folder: Path) -> str:
    file = file.resolve()
    if file.is_relative_to(_PACKAGE):
        return f"limbeck/{file.relative_to(_PACKAGE).as_posix()}"
    return f"experiment/{file.name}" if file.parent == folder else ""


def _place(name: str, folder: Path) -> Path:
    room, _, rest = name.partition("/")
    return (_PACKAGE if room == "limbeck" else folder) / rest


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
