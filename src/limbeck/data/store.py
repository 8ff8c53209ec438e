"""The cache folder: where it is, who may write in it, and files that are never half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from limbeck.errors import UserError


def cache_folder(*parts: str) -> Path:
    """``$LIMBECK_CACHE`` or ``~/.cache/limbeck``, made if need be; ``parts`` name a folder inside it."""
    given = os.environ.get("LIMBECK_CACHE")
    root = Path(given).expanduser() if given else Path.home() / ".cache" / "limbeck"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("LIMBECK_CACHE", str(folder), "a folder that can be written", str(error)) from error
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock ``name``: of several processes one works and the others wait for its result."""
    with FileLock(cache_folder("locks") / f"{name}.lock"):
        yield


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that becomes ``target`` only if the block ends well.

    The block may make a file or a folder there. What a killed process left behind is removed by the next one,
    so call it while holding the target's lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.aside-"
    for left in target.parent.glob(f"{prefix}*"):
        _remove(left)
    holder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        made = holder / target.name
        yield made
        if target.is_dir():
            _remove(target)
        os.replace(made, target)
    except OSError as error:
        raise UserError("cache folder", str(target.parent), "room to write", str(error)) from error
    finally:
        _remove(holder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping as canonical JSON: the name of whatever is made from exactly this."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
