"""What a cache holds and what it was made from: ``manifest.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.cache.codecs import codec
from limbeck.cache.contract import Codec
from limbeck.cache.errors import ForeignCache, StaleCache, TornCache
from limbeck.cache.files import write_whole
from limbeck.cache.fingerprint import fingerprint_file
from limbeck.errors import UserError

FILE = "manifest.json"
FORMAT = "limbeck-cache"
VERSION = 1


@dataclass(frozen=True)
class SignalSpec:
    """How one signal is stored.

    Attributes:
        codec: name of its codec.
        shape: of one sample, or of one position of a ragged signal.
        dtype: what the teacher gave, as in ``float32``.
        ragged: whether a sample has a number of positions of its own.
    """

    codec: str
    shape: tuple[int, ...]
    dtype: str
    ragged: bool = False

    def open(self) -> Codec:
        return codec(self.codec)


@dataclass(frozen=True)
class Shard:
    """One file: its name, number of samples, bytes and SHA-256."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """The contents of a cache.

    Attributes:
        fingerprint: content hashes by part (``teacher``, ``preprocessing``, ``tokenizer``, ``data``).
        signals: how each is stored; empty until the first write.
        shards: in the order of writing.
        views: whether samples are told apart by a view seed; None until the first write.
        complete: whether a writer said that nothing is missing.
    """

    fingerprint: dict[str, str]
    signals: dict[str, SignalSpec] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    views: bool | None = None
    complete: bool = False

    @property
    def rows(self) -> int:
        """Number of samples (times views)."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def save(self, folder: Path) -> None:
        whole = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        write_whole(folder / FILE, (json.dumps(whole, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of ``folder``.

        Raises:
            UserError: no such folder.
            ForeignCache: not a cache, or one of another version.
            TornCache: not readable as what it claims to be.
        """
        if not folder.is_dir():
            raise UserError(
                "cache", str(folder), "an existing cache folder", "write one with limbeck.cache.write_cache"
            )
        if not (folder / FILE).is_file():
            raise ForeignCache(folder, f"there is no {FILE}", "give a folder that Limbeck's cache writer made")
        try:
            whole = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise TornCache(folder, f"{FILE} is not JSON ({error})", "write the cache again") from error
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ForeignCache(folder, f"{FILE} was not written by Limbeck's cache")
        if whole.get("version") != VERSION:
            raise ForeignCache(
                folder,
                f"format version {whole.get('version')}, this release reads {VERSION}",
                "write the cache again",
            )
        try:
            return cls._of(whole)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TornCache(folder, f"{FILE} lacks or mangles {error}", "write the cache again") from error

    @classmethod
    def _of(cls, whole: Mapping[str, Any]) -> Manifest:
        signals = {
            name: SignalSpec(spec["codec"], tuple(spec["shape"]), spec["dtype"], spec["ragged"])
            for name, spec in whole["signals"].items()
        }
        shards = [Shard(**shard) for shard in whole["shards"]]
        return cls(dict(whole["fingerprint"]), signals, shards, whole["views"], whole["complete"])

    def expect(self, folder: Path, expected: Mapping[str, str]) -> None:
        """Compare fingerprints; parts that ``expected`` does not name are not compared.

        Raises:
            StaleCache: naming every part that differs.
        """
        differs = [name for name, value in expected.items() if self.fingerprint.get(name) != value]
        if not differs:
            return
        details = ", ".join(
            f"{n}: cache {_short(self.fingerprint.get(n))}, expected {_short(expected[n])}" for n in differs
        )
        raise StaleCache(
            folder,
            f"written with another {' and '.join(differs)} ({details})",
            "write the cache again in a new folder, or give what it was written with",
            differs,
        )

    def check_size(self, folder: Path, shard: Shard) -> str:
        """What is wrong with a shard's size, or an empty string."""
        path = folder / shard.file
        if not path.is_file():
            return f"shard {shard.file} is missing"
        size = path.stat().st_size
        return "" if size == shard.bytes else f"shard {shard.file} has {size} bytes instead of {shard.bytes}"

    def check_content(self, folder: Path, shard: Shard) -> str:
        """What is wrong with a shard's size or bytes, or an empty string."""
        wrong = self.check_size(folder, shard)
        if wrong or fingerprint_file(folder / shard.file) == shard.sha256:
            return wrong
        return f"shard {shard.file} has another checksum than was written"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
