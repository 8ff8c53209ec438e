"""What a cache holds and what it was made from: ``manifest.json``."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.cache.codecs import codec
from limbeck.cache.contract import Codec
from limbeck.cache.errors import ForeignCache, StaleCache, TornCache
from limbeck.cache.places import Place, place_of
from limbeck.cache.vectors import WORDS, ProductQuantizer
from limbeck.errors import UserError
from limbeck.signals import SparseLogits

FILE = "manifest.json"
PART = "part-"
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
        codebook: of a codec that learnt one, base64 of its float16 numbers.
    """

    codec: str
    shape: tuple[int, ...]
    dtype: str
    ragged: bool = False
    codebook: str = ""

    def open(self) -> Codec:
        """The codec, with its codebook."""
        found = codec(self.codec)
        if isinstance(found, ProductQuantizer) and self.codebook:
            words = torch.frombuffer(bytearray(base64.b64decode(self.codebook)), dtype=torch.float16)
            found.codebook = words.reshape(found.parts, WORDS, -1)
        return found

    def learnt(self, value: Tensor | SparseLogits) -> SignalSpec:
        """The same with a codebook learnt from ``value``, if the codec has one and it is not there yet."""
        found = codec(self.codec)
        if not isinstance(found, ProductQuantizer) or self.codebook:
            return self
        words = base64.b64encode(found.learn(value).numpy().tobytes()).decode()
        return dataclasses.replace(self, codebook=words)


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
        writers: of a part, how many parts there will be; of a whole cache None.
    """

    fingerprint: dict[str, str]
    signals: dict[str, SignalSpec] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    views: bool | None = None
    complete: bool = False
    writers: int | None = None

    @property
    def rows(self) -> int:
        """Number of samples (times views)."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def save(self, folder: Path | Place) -> None:
        whole = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        place_of(folder).write(FILE, (json.dumps(whole, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path | Place) -> Manifest:
        """Read the manifest of ``folder`` alone, without its parts.

        Raises:
            UserError: no such folder.
            ForeignCache: not a cache, or one of another version.
            TornCache: not readable as what it claims to be.
        """
        place = place_of(folder)
        where = place.folder
        if not place.exists():
            raise UserError("cache", str(where), "an existing cache folder", "write one with limbeck.cache.write_cache")
        if not place.has(FILE):
            raise ForeignCache(where, f"there is no {FILE}", "give a folder that Limbeck's cache writer made")
        try:
            whole = json.loads(place.read(FILE))
        except ValueError as error:
            raise TornCache(where, f"{FILE} is not JSON ({error})", "write the cache again") from error
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ForeignCache(where, f"{FILE} was not written by Limbeck's cache")
        if whole.get("version") != VERSION:
            raise ForeignCache(
                where,
                f"format version {whole.get('version')}, this release reads {VERSION}",
                "write the cache again",
            )
        try:
            return cls._of(whole)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TornCache(where, f"{FILE} lacks or mangles {error}", "write the cache again") from error

    @classmethod
    def _of(cls, whole: Mapping[str, Any]) -> Manifest:
        signals = {
            name: SignalSpec(
                spec["codec"], tuple(spec["shape"]), spec["dtype"], spec["ragged"], spec.get("codebook", "")
            )
            for name, spec in whole["signals"].items()
        }
        shards = [Shard(**shard) for shard in whole["shards"]]
        return cls(dict(whole["fingerprint"]), signals, shards, whole["views"], whole["complete"], whole.get("writers"))

    @classmethod
    def gather(cls, folder: Path | Place, leave: str = "") -> Manifest:
        """The manifest of ``folder`` and its parts as one; the part ``leave`` is left out.

        Raises:
            StaleCache: parts of different caches. Otherwise as :meth:`load`.
        """
        place = place_of(folder)
        parts = [name for name in (place.names() if place.exists() else []) if name.startswith(PART) and name != leave]
        parts = [name for name in parts if place.part(name).has(FILE)]
        if not parts:
            return cls.load(place)
        found = [cls.load(place.part(name)) for name in parts]
        whole = cls(found[0].fingerprint, complete=_all_there(found))
        if place.has(FILE):
            whole = cls.load(place)
            whole.complete = whole.complete or _all_there(found)
        for name, part in zip(parts, found, strict=True):
            part.expect(place.part(name).folder, whole.fingerprint)
            if part.views is None:
                continue
            if whole.views is None:
                whole.signals, whole.views = part.signals, part.views
            if (part.signals, part.views) != (whole.signals, whole.views):
                raise StaleCache(place.part(name).folder, "its signals or codecs are not those of the other parts")
            whole.shards += [dataclasses.replace(shard, file=f"{name}/{shard.file}") for shard in part.shards]
        return whole

    def expect(self, folder: Path | str, expected: Mapping[str, str]) -> None:
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

    def check_size(self, folder: Path | Place, shard: Shard) -> str:
        """What is wrong with a shard's size, or an empty string."""
        size = place_of(folder).size(shard.file)
        if size is None:
            return f"shard {shard.file} is missing"
        return "" if size == shard.bytes else f"shard {shard.file} has {size} bytes instead of {shard.bytes}"

    def check_content(self, folder: Path | Place, shard: Shard) -> str:
        """What is wrong with a shard's size or bytes, or an empty string."""
        wrong = self.check_size(folder, shard)
        if wrong or place_of(folder).intact(shard.file, shard.sha256):
            return wrong
        return f"shard {shard.file} has another checksum than was written"


def part_name(number: int) -> str:
    """The folder of a writer's part."""
    return f"{PART}{number:04d}"


def _all_there(parts: Sequence[Manifest]) -> bool:
    wanted = max((part.writers or 0 for part in parts), default=0)
    return len(parts) >= wanted > 0 and all(part.complete for part in parts)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
