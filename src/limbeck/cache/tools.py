"""Looking after caches: what is in one, is it whole, several as one, the same in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.cache.errors import TornCache
from limbeck.cache.manifest import FILE, PART, Manifest
from limbeck.cache.places import Place, place_of
from limbeck.cache.reader import REMEDY, CacheReader, load_keys
from limbeck.cache.writer import CacheWriter
from limbeck.errors import UserError
from limbeck.signals import TOLD, dense

Folder = str | Path | Place


def show(folder: Folder) -> dict[str, Any]:
    """What a cache holds: samples, signals with codec and error, bytes, where it comes from.

    ``left_out`` counts the samples that the teacher could not answer, where it says so.
    """
    reader = CacheReader(folder, verify="size", allow_empty=True)
    manifest, samples = reader.manifest, len(reader)
    return {
        "folder": str(reader.folder),
        "samples": samples,
        **({"left_out": untold(reader)} if TOLD in reader.signals else {}),
        "distinct_ids": len(reader.ids().unique()),
        "views": bool(manifest.views),
        "complete": manifest.complete,
        "signals": {
            name: {"codec": spec.codec, "shape": list(spec.shape), "dtype": spec.dtype, "ragged": spec.ragged,
                   "error": spec.open().error}
            for name, spec in manifest.signals.items()
        },
        "shards": len(manifest.shards),
        "parts": len({shard.file.partition("/")[0] for shard in manifest.shards if shard.file.startswith(PART)}),
        "bytes": manifest.bytes,
        "bytes_per_sample": manifest.bytes / max(samples, 1),
        "fingerprint": manifest.fingerprint,
    }  # fmt: skip


def untold(reader: CacheReader) -> int:
    """Samples of a cache that its teacher could not answer; see :data:`~limbeck.signals.TOLD`."""
    if TOLD not in reader.signals or not len(reader):
        return 0
    return int((~dense(reader.read(reader.ids(), reader.views(), (TOLD,)), TOLD)).sum())


def verify(folder: Folder, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Compare every shard with its checksum.

    Args:
        folder: the cache.
        progress: called with the shards looked at and their number.

    Raises:
        TornCache: naming every shard that is missing or differs, after all were looked at.
    """
    place = place_of(folder)
    manifest = Manifest.gather(place)
    wrong = []
    for number, shard in enumerate(manifest.shards, 1):
        wrong += [reason] if (reason := manifest.check_content(place, shard)) else []
        if progress is not None:
            progress(number, len(manifest.shards))
    if wrong:
        raise TornCache(place.folder, "; ".join(wrong), REMEDY)
    return {"folder": str(place.folder), "shards": len(manifest.shards), "bytes": manifest.bytes, "intact": True}


def merge(folder: Folder, others: Sequence[Folder] = ()) -> Manifest:
    """Make the parts of several writers, and whole other caches, one cache without parts.

    Shards are taken over as they are. A shard all of whose samples are there already is left out. Each is first
    written, then entered, and only then is its part removed, so that a merge that was cut is begun again.

    Args:
        folder: the cache that remains. It may be new where ``others`` are given.
        others: caches of the same teacher and codecs; they stay as they are.

    Raises:
        StaleCache: a cache of another teacher, data or codec. LockedCache: a writer is at work in one of them.
        TornCache: a shard that is not as it was written; nothing of it is taken over.
    """
    place = place_of(folder)
    sources = [place_of(other) for other in others]
    parts = [place.part(name) for name in (place.names() if place.exists() else []) if name.startswith(PART)]
    if not parts and not sources:
        raise UserError("merge", str(place.folder), "a cache with parts, or other caches to take in")
    models = [Manifest.load(part) for part in parts if part.has(FILE)]
    model = Manifest.gather(place) if models or place.has(FILE) else Manifest.gather(sources[0])
    codecs = {name: spec.codec for name, spec in model.signals.items()}
    ragged = [name for name, spec in model.signals.items() if spec.ragged]
    locks = [part.lock() for part in parts]
    try:
        with CacheWriter(place, model.fingerprint, codecs, ragged=ragged, alone=True) as writer:
            for source in [*parts, *sources]:
                if source.has(FILE) or source not in parts:
                    _take(writer, source, Manifest.gather(source))
            done = model.complete and all(Manifest.gather(source).complete for source in sources)
            writer.manifest.complete = done
            writer.manifest.save(place)
    finally:
        for lock in locks:
            lock.release()
    for part in parts:
        # The manifest last: until then it is a part like any other.
        for name in sorted(part.names(), key=lambda name: name == FILE):
            part.remove(name)
        if place.names().count(str(part.folder).rpartition("/")[2]):
            place.remove(str(part.folder).rpartition("/")[2])
    return Manifest.load(place)


def _take(writer: CacheWriter, source: Place, manifest: Manifest) -> None:
    writer.wanted.refuse_other(manifest)
    for shard in manifest.shards:
        if wrong := manifest.check_content(source, shard):
            raise TornCache(source.folder, wrong, REMEDY)
        keys, seeds = load_keys(source, shard, bool(manifest.views))
        writer.take(source.read(shard.file), keys, seeds, manifest)


def recode(
    folder: Folder, out: Folder, codec: Mapping[str, str] | str, progress: Callable[[int, int], None] | None = None,
    *, batch_size: int = 256, shard_rows: int = 4096,
) -> Manifest:  # fmt: skip
    """Write the signals of a cache again with other codecs, without asking the teacher.

    What the first codec lost stays lost; the new cache says so in its fingerprint (``recoded``), next to the teacher's.

    Args:
        folder: the cache. out: the new one; one that was cut goes on.
        codec: for all signals, or one per name; signals without one keep theirs.
        progress: called with the samples seen so far and their number.
        batch_size: samples at a time.
        shard_rows: samples per new shard.

    Raises:
        UserError: top-k signals cannot become whole ones, nor have more classes than they have.
    """
    reader = CacheReader(folder)
    old = {name: spec.codec for name, spec in reader.signals.items()}
    codecs = dict.fromkeys(old, codec) if isinstance(codec, str) else {**old, **codec}
    for name in codecs:
        if name not in old:
            raise UserError("cached signal", name, sorted(old))
    told = ", ".join(f"{name} from {old[name]}" for name in sorted(old) if old[name] not in (codecs[name], "exact"))
    parts = {**reader.manifest.fingerprint, **({"recoded": told} if told else {})}
    ragged = [name for name, spec in reader.signals.items() if spec.ragged]
    ids, views = reader.ids(), reader.views()
    with CacheWriter(out, parts, codecs, shard_rows, ragged=ragged) as writer:
        if writer.place.folder == reader.place.folder:
            raise UserError("out", str(out), "another folder than the cache's own")
        for rows in torch.arange(len(ids)).split(batch_size):
            some, seeds = ids[rows], None if views is None else views[rows]
            if not writer.done(some, seeds).all():
                signals = dict(reader.read(some, seeds))
                mask = signals.pop("mask", None) if ragged and "mask" not in reader.signals else None
                writer.write(some, signals, seeds, mask if isinstance(mask, torch.Tensor) else None)
            if progress is not None:
                progress(int(rows[-1]) + 1, len(ids))
        manifest = writer.finish() if reader.manifest.complete else writer.manifest
    return manifest
