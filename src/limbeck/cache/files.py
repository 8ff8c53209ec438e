"""Files that appear whole or not at all, and the lock that keeps a second writer out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import time
from pathlib import Path

from limbeck.cache.errors import CacheError, DiskFull, LockedCache

ASIDE = ".tmp"
LOCK = "writer.lock"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write ``path`` so that after a crash at any moment it is the old file or the new one.

    Raises:
        DiskFull: no space, quota or file size left; nothing is left behind.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            rest = memoryview(content)
            while len(rest):
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if error.errno in FULL:
            free = shutil.disk_usage(path.parent).free
            raise DiskFull(
                path.parent,
                f"{os.strerror(error.errno or 0)}: {len(content)} bytes to write, {free} bytes free",
                "free space and run again: complete shards are kept and only the others are computed",
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """One writer per folder.

    The kernel holds the lock for the process and drops it when that dies, however it dies, so a lock file
    that a killed writer left is recognised as stale and taken over. The file says who holds it, for the error
    message.

    Raises:
        LockedCache: another writer is alive, here or (on a network file system) on another machine.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # Late, so that reading a cache works where there is no fcntl.

        self._process = os.getpid()
        self._handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockedCache(
                    folder, f"another writer is at work ({holder})", "wait for it, or write to another folder"
                ) from error
            raise CacheError(folder, f"the file system offers no locks ({error.strerror})") from error
        self.taken_over = self._holder() if os.fstat(self._handle).st_size else ""
        self._write(json.dumps({"process": self._process, "host": platform.node(), "since": int(time.time())}))

    def release(self) -> None:
        """Let the next writer in."""
        if self._handle < 0:
            return
        # A forked child shares the lock with its parent and must not give it away.
        if os.getpid() == self._process:
            with contextlib.suppress(OSError):
                self._write("")
        os.close(self._handle)
        self._handle = -1

    def _write(self, text: str) -> None:
        os.ftruncate(self._handle, 0)
        try:
            os.pwrite(self._handle, text.encode(), 0)
        except OSError as error:
            # Who holds the lock is a courtesy; on a full disk the lock itself still holds.
            if error.errno not in FULL:
                raise

    def _holder(self) -> str:
        try:
            held = json.loads(os.pread(self._handle, 4096, 0))
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"]))
            return f"process {held['process']} on {held['host']} since {since}"
        except (ValueError, KeyError, TypeError, OSError):
            return "process unknown"
