"""Going on with a cache: what an earlier writer left, what others write beside it, and whether it is the same cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from limbeck.cache.codecs import codec
from limbeck.cache.errors import ForeignCache, StaleCache
from limbeck.cache.files import ASIDE, LOCK
from limbeck.cache.manifest import FILE, PART, Manifest
from limbeck.cache.places import Place

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Wanted:
    """What a writer was asked for: the fingerprint of everything that decides the signals, and their codecs."""

    folder: str | Path
    fingerprint: Mapping[str, str]
    codecs: Mapping[str, str] | str

    def codec_of(self, name: str, dtype: torch.dtype) -> str:
        """The codec of a signal."""
        if not dtype.is_floating_point:
            return "exact"
        return self.codecs if isinstance(self.codecs, str) else self.codecs.get(name, "float16")

    def refuse_other(self, manifest: Manifest) -> None:
        """Refuse a cache of another teacher, data or codec.

        Raises:
            StaleCache: naming what differs.
        """
        manifest.expect(self.folder, {**dict.fromkeys(manifest.fingerprint, "none"), **self.fingerprint})
        for name, spec in manifest.signals.items():
            wanted = self.codec_of(name, getattr(torch, spec.dtype))
            if spec.codec != codec(wanted).name:
                raise StaleCache(
                    self.folder,
                    f"signal {name} is stored as {spec.codec}, asked for {wanted}",
                    "use the same codecs, or another folder",
                    ("codec",),
                )


def reopen(place: Place, wanted: Wanted, verify: str) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a folder, a new one where there is none, and why shards of an earlier writer were dropped."""
    for name in place.names():
        if name.endswith(ASIDE):
            place.remove(name)
    if not place.has(FILE):
        manifest = Manifest(dict(wanted.fingerprint))
        manifest.save(place)
    else:
        manifest = Manifest.load(place)
        wanted.refuse_other(manifest)
    check = manifest.check_content if verify == "full" else manifest.check_size
    wrong = {shard: reason for shard in manifest.shards if (reason := check(place, shard))}
    if wrong:
        manifest.shards = [shard for shard in manifest.shards if shard not in wrong]
        manifest.complete = False
        manifest.save(place)
    entered = {shard.file for shard in manifest.shards}
    for name in place.names():
        # Renamed but not yet entered when the writer died, or dropped just now.
        if name.endswith(SUFFIX) and name not in entered:
            place.remove(name)
    return manifest, tuple(wrong.values())


def written_by_others(root: Place, mine: str, wanted: Wanted) -> Manifest | None:
    """What other writers have in the same cache; None if there are none. ``mine`` is this one's part, if it has one."""
    places = [root.part(name) for name in root.names() if name.startswith(PART) and name != mine]
    if not any(place.has(FILE) for place in ([*places, root] if mine else places)):
        return None
    found = Manifest.gather(root, leave=mine)
    wanted.refuse_other(found)
    if not mine:
        found.shards = [shard for shard in found.shards if shard.file.startswith(PART)]
    return found


def refuse_foreign(place: Place) -> None:
    """Refuse a folder that holds something else."""
    if place.has(FILE):
        return
    strange = [name for name in place.names() if name not in (LOCK, FILE + ASIDE) and not name.startswith(PART)]
    if strange:
        raise ForeignCache(
            place.folder,
            f"there is no {FILE}, but other files are ({', '.join(strange[:5])})",
            "give a new or empty folder",
        )
