"""Where a cache lies: a folder of this machine, or any location that fsspec can write (``s3://``, ``memory://``)."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import platform
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from limbeck.cache.errors import LockedCache
from limbeck.cache.files import ASIDE, LOCK, FolderLock, write_whole
from limbeck.cache.fingerprint import fingerprint_file


class Lock(Protocol):
    """What keeps a second writer out."""

    taken_over: str

    def release(self) -> None: ...


class Place(ABC):
    """The files of a cache by name; ``part-0001/x`` is a file of a part.

    Attributes:
        folder: what the user gave: a path, or a URL.
    """

    folder: Path | str

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a folder (or anything in such a location)."""

    @abstractmethod
    def make(self) -> None:
        """Make the folder."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it appears whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with nothing in it."""

    @abstractmethod
    def intact(self, name: str, sha256: str) -> bool:
        """Whether a file's bytes are those of the checksum."""

    @abstractmethod
    def tensors(self, name: str, sha256: str, names: Collection[str] = ()) -> Mapping[str, Tensor]:
        """Tensors of a safetensors file, all by default, mapped into memory; ``sha256`` is what it should be."""

    @abstractmethod
    def lock(self) -> Lock:
        """Keep other writers out.

        Raises:
            LockedCache: another writer is there.
        """

    @abstractmethod
    def part(self, name: str) -> Place:
        """A folder in it."""

    def has(self, name: str) -> bool:
        return self.size(name) is not None


class Local(Place):
    """A folder; files are written aside, synchronised and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder

    def exists(self) -> bool:
        return self.folder.is_dir()

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def size(self, name: str) -> int | None:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        write_whole(self.folder / name, content)

    def remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()

    def intact(self, name: str, sha256: str) -> bool:
        return fingerprint_file(self.folder / name) == sha256

    def tensors(self, name: str, sha256: str, names: Collection[str] = ()) -> Mapping[str, Tensor]:
        with safetensors.safe_open(self.folder / name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in names or file.keys()}

    def lock(self) -> Lock:
        return FolderLock(self.folder)

    def part(self, name: str) -> Local:
        return Local(self.folder / name)


class Remote(Place):
    """A location that fsspec opens by its URL; needs fsspec's package for the protocol (``s3fs`` for ``s3://``).

    Shards are copied to this machine when they are first read from, under their checksums in the folder for temporary
    files, and mapped from there. Object stores write a file whole or not at all. There are no locks: a writer leaves a
    claim, which one that was killed leaves behind; the error says which file to delete.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.folder: str = url.rstrip("/")
        self._files, self._root = fsspec.core.url_to_fs(self.folder)

    def exists(self) -> bool:
        return bool(self._files.exists(self._root))

    def make(self) -> None:
        self._files.makedirs(self._root, exist_ok=True)

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        if not self.exists():
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False))

    def size(self, name: str) -> int | None:
        try:
            found: dict[str, Any] = self._files.info(self._at(name))
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else int(found["size"])

    def read(self, name: str) -> bytes:
        return bytes(self._files.cat_file(self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(self._at(name), bytes(content))

    def remove(self, name: str) -> None:
        self._files.rm(self._at(name), recursive=True)

    def intact(self, name: str, sha256: str) -> bool:
        return self._copy(name, sha256) is not None

    def tensors(self, name: str, sha256: str, names: Collection[str] = ()) -> Mapping[str, Tensor]:
        if names:
            return self._ranges(name, names)
        copy = self._copy(name, sha256)
        if copy is None:
            raise OSError("its bytes are not those that were written")
        return Local(copy.parent).tensors(copy.name, sha256)

    def lock(self) -> Lock:
        return _Claim(self)

    def part(self, name: str) -> Remote:
        return Remote(f"{self.folder}/{name}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _copy(self, name: str, sha256: str) -> Path | None:
        """A copy on this machine; None if the bytes are others than they should be."""
        copies = Path(tempfile.gettempdir()) / f"limbeck-shards-{getpass.getuser()}"
        copy = copies / f"{sha256}.safetensors"
        if not copy.is_file():
            content = self.read(name)
            if hashlib.sha256(content).hexdigest() != sha256:
                return None
            copies.mkdir(mode=0o700, exist_ok=True)
            write_whole(copies / f"{copy.name}.{os.getpid()}", content)
            os.replace(copies / f"{copy.name}.{os.getpid()}", copy)
        return copy

    def _ranges(self, name: str, names: Collection[str]) -> Mapping[str, Tensor]:
        """A few tensors of a file without the rest of it: its header says where they are."""
        place = self._at(name)
        length = int.from_bytes(self._files.cat_file(place, 0, 8), "little")
        header = json.loads(self._files.cat_file(place, 8, 8 + length))
        found: dict[str, Tensor] = {}
        for key in names:
            start, stop = header[key]["data_offsets"]
            alone = json.dumps({key: {**header[key], "data_offsets": [0, stop - start]}}).encode()
            content = self._files.cat_file(place, 8 + length + start, 8 + length + stop)
            found.update(safetensors.torch.load(len(alone).to_bytes(8, "little") + alone + bytes(content)))
        return found


class _Claim:
    """A file that says who writes, where there are no locks."""

    taken_over = ""

    def __init__(self, place: Remote) -> None:
        self._place, self._held = place, False
        if place.has(LOCK):
            claim = json.loads(place.read(LOCK))
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(claim["since"]))
            raise LockedCache(
                place.folder,
                f"another writer is at work (process {claim['process']} on {claim['host']} since {since})",
                f"wait for it; if it is gone, delete {place.folder}/{LOCK}",
            )
        whole = {"process": os.getpid(), "host": platform.node(), "since": int(time.time())}
        place.write(LOCK, json.dumps(whole).encode())
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            with contextlib.suppress(FileNotFoundError):
                self._place.remove(LOCK)


def place_of(folder: str | Path | Place) -> Place:
    """The place of a path, a URL, or itself."""
    if isinstance(folder, Place):
        return folder
    text = str(folder)
    if "://" not in text:
        return Local(Path(folder))
    return Local(Path(text.removeprefix("file://"))) if text.startswith("file://") else Remote(text)


def is_aside(name: str) -> bool:
    """Whether a file is one that was being written when its writer died."""
    return name.endswith(ASIDE)
