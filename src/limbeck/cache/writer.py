"""Writing a cache: shard by shard, each whole or absent, so that a killed writer is continued."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

import numpy
import safetensors.torch
import torch
from torch import Tensor

from limbeck.cache.checks import bad_elements, encode, keys_of, rows_of, specs_of, words_of
from limbeck.cache.codecs import codec
from limbeck.cache.contract import Codec
from limbeck.cache.errors import BadSignals
from limbeck.cache.index import Int64
from limbeck.cache.manifest import Manifest, Shard, SignalSpec, part_name
from limbeck.cache.opening import SUFFIX, Wanted, refuse_foreign, reopen, written_by_others
from limbeck.cache.pending import Done, Rows
from limbeck.cache.places import Lock, Place, place_of
from limbeck.cache.reader import load_keys
from limbeck.errors import UserError
from limbeck.signals import Signals, SparseLogits, dense_or_sparse

CHECKS = ("size", "full")


class CacheWriter:
    """Writes teacher signals into a folder, or goes on with one that an earlier writer left.

    Rows are gathered until a shard is full; a shard is written aside, synchronised, renamed and then entered
    into the manifest, so after a kill, a crash or a full disk every entered shard is good and at most the
    rows of one shard are lost. Use it as a context manager: leaving it writes the last, shorter shard.

    Args:
        folder: a new or empty folder, or a cache with the same fingerprint and codecs; a path or a URL of fsspec.
        fingerprint: content hashes of what decides the signals, by part: ``teacher``, ``preprocessing``,
            ``tokenizer``, ``data``; see :func:`limbeck.cache.fingerprint_of`.
        codecs: one codec for all signals, or one per signal name. A signal without one gets ``float16``;
            integers and booleans are always stored ``exact``.
        shard_rows: samples per shard, which is what a kill may cost.
        shard_bytes: a shard is closed earlier when it holds this many bytes.
        shard_seconds: and when its first row has waited so long: what a kill may cost where the teacher is slow.
        ragged: signals ``[B, L, ...]`` with positions of their own per sample; only those that the mask
            counts are stored.
        part: number of this writer, and of how many, where several write one cache side by side: each in a folder of
            its own inside, with its own lock. Samples that any of them had when this one began count as done.
            Readers see all parts as one; :func:`~limbeck.cache.merge` makes them one.
        alone: what the parts in the folder have does not count as done; for merging them.
        verify: how the shards of an earlier writer are checked: ``full`` (checksums) or ``size``. Torn ones
            are dropped and their samples count as not done.

    Raises:
        LockedCache, StaleCache, ForeignCache, TornCache: the folder cannot be continued; the message says
            why.
    """

    def __init__(
        self,
        folder: str | Path | Place,
        fingerprint: Mapping[str, str],
        codecs: Mapping[str, str] | str = "float16",
        shard_rows: int = 4096,
        *,
        shard_bytes: int = 256 * 2**20,
        shard_seconds: float = 60.0,
        ragged: Collection[str] = (),
        part: tuple[int, int] | None = None,
        alone: bool = False,
        verify: str = "full",
    ) -> None:
        if shard_rows < 1:
            raise UserError("shard_rows", shard_rows, "1 or more")
        if verify not in CHECKS:
            raise UserError("verify", verify, CHECKS)
        for name in (codecs,) if isinstance(codecs, str) else codecs.values():
            codec(name)
        if part is not None and not 0 <= part[0] < part[1]:
            raise UserError("part", part, "(number, writers) with a number of 0 up to, and not including, writers")
        root = place_of(folder)
        name = "" if part is None else part_name(part[0])
        self.place = root.part(name) if name else root
        self.folder = self.place.folder
        self.ragged = frozenset(ragged)
        self.wanted = Wanted(self.folder, dict(fingerprint), codecs)
        self._shard_rows, self._shard_bytes, self._shard_seconds = shard_rows, shard_bytes, shard_seconds
        self._pending: list[Rows] = []
        self._since = 0.0
        self._failed, self._process = False, os.getpid()
        root.make()
        refuse_foreign(root)
        # Before a part is begun: one that is refused may not stand among the others.
        others = None if alone else written_by_others(root, name, self.wanted)
        self.place.make()
        self._lock: Lock | None = self.place.lock()
        try:
            self.manifest, self.dropped = reopen(self.place, self.wanted, verify)
            if part is not None:
                self.manifest.writers = part[1]
            keys = [load_keys(self.place, shard, bool(self.manifest.views)) for shard in self.manifest.shards]
            if others is not None:
                keys += [load_keys(root, shard, bool(others.views)) for shard in others.shards]
                if not self.manifest.signals:
                    self.manifest.signals, self.manifest.views = others.signals, others.views
            self._done = Done(keys)
        except BaseException:
            self._lock.release()
            raise

    def write(self, ids: Tensor, signals: Signals, views: Tensor | None = None, mask: Tensor | None = None) -> int:
        """Add a batch; samples that are already there are left out.

        Args:
            ids: integers ``[B]``.
            signals: name -> ``[B, ...]``; the same names, shapes and dtypes in every call.
            views: seeds of the augmentation ``[B]``, given always or never.
            mask: bool ``[B, L]``, the positions of ragged signals that count.

        Returns:
            The number of samples added.

        Raises:
            BadSignals: NaN, infinite or out of the codec's range; nothing of the batch is added.
            DiskFull: what is complete is kept; this writer is finished.
        """
        self._check_open()
        keys, seeds = self._keys(ids, views)
        specs = self._specs(signals, len(keys), mask)
        fresh = ~self._done(keys, seeds)
        first = numpy.zeros(len(keys), dtype=bool)
        first[numpy.unique(numpy.stack([keys, seeds]), axis=1, return_index=True)[1]] = True
        fresh &= first
        if not fresh.any():
            return 0
        chosen = torch.from_numpy(fresh)
        counted = None if mask is None else mask.detach().cpu().bool()[chosen]
        parts: dict[str, Tensor] = {}
        for name, spec in list(specs.items()):
            value = rows_of(dense_or_sparse(signals, name), chosen)
            positions = counted if spec.ragged else None
            self._refuse_bad(name, value, keys[fresh], positions, spec.open())
            specs[name] = spec = spec.learnt(value if positions is None else rows_of(value, positions))
            parts.update({f"{name}/{part}": row for part, row in encode(value, positions, spec).items()})
        lengths = None if counted is None or not self.ragged else counted.sum(1)
        self.manifest.signals, self.manifest.views = specs, views is not None
        streams = {
            f"{name}/{stream}": f"{name}/{counting}"
            for name, spec in specs.items()
            for stream, counting in spec.open().streams.items()
        }
        rows = Rows.of(keys[fresh], seeds[fresh], parts, lengths, {n for n in specs if specs[n].ragged}, streams)
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(rows)
        self._done.add(keys[fresh], seeds[fresh])
        while sum(len(rows) for rows in self._pending) >= self._shard_rows:
            self._write_shard(self._shard_rows)
        waited = time.monotonic() - self._since
        if sum(rows.bytes for rows in self._pending) >= self._shard_bytes or waited >= self._shard_seconds:
            self.flush()
        return int(fresh.sum())

    def take(self, content: bytes, keys: Int64, seeds: Int64, manifest: Manifest) -> int:
        """Add a shard of another cache as it is, unless all of its samples are there; ``manifest`` is that cache's.

        Returns:
            The number of its samples, 0 if it was left out.
        """
        self._check_open()
        self.wanted.refuse_other(manifest)
        # What is in memory only does not count: this shard is written now.
        if not len(keys) or self._done(keys, seeds).all():
            return 0
        self.manifest.signals, self.manifest.views = manifest.signals, manifest.views
        self._enter(content, len(keys))
        self._done.add(keys, seeds)
        return len(keys)

    def done(self, ids: Tensor, views: Tensor | None = None) -> Tensor:
        """Which of the samples are written or about to be: bool ``[B]``."""
        return torch.from_numpy(self._done(*self._keys(ids, views)))

    def done_ids(self) -> Tensor:
        """Ids of all samples written or about to be, each once, rising."""
        return torch.from_numpy(self._done.ids())

    def flush(self) -> None:
        """Write what is gathered, as a shard of its own."""
        self._check_open()
        if self._pending:
            self._write_shard(sum(len(rows) for rows in self._pending))

    def finish(self) -> Manifest:
        """Write what is gathered and note that nothing is missing."""
        self.flush()
        self.manifest.complete = True
        self.manifest.save(self.place)
        return self.manifest

    def close(self) -> None:
        """Write what is gathered and let another writer in; may be called again."""
        if self._lock is None:
            return
        try:
            # A forked worker must not write its parent's rows.
            if not self._failed and os.getpid() == self._process:
                self.flush()
        finally:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        # The batches before the error are good; a second error here must not hide the first.
        with contextlib.suppress(Exception):
            self.close()

    def _keys(self, ids: Tensor, views: Tensor | None) -> tuple[Int64, Int64]:
        known = self.manifest.views
        if known is not None and known != (views is not None):
            raise UserError(
                "views",
                "none" if views is None else "seeds",
                "seeds always or never",
                f"the cache has {'' if known else 'no '}views",
            )
        keys = keys_of("id", ids)
        seeds = numpy.zeros_like(keys) if views is None else keys_of("view", views)
        if len(seeds) != len(keys):
            raise UserError("view", f"{len(seeds)} seeds", f"{len(keys)}, one per id")
        return keys, seeds

    def _specs(self, signals: Signals, count: int, mask: Tensor | None) -> dict[str, SignalSpec]:
        specs = specs_of(signals, count, mask, self.ragged, self.wanted.codec_of)
        known = self.manifest.signals
        specs = {
            name: dataclasses.replace(spec, codebook=known[name].codebook) if name in known else spec
            for name, spec in specs.items()
        }
        if known and known != specs:
            raise UserError("signals", words_of(specs), words_of(known), "every batch of a cache has the same signals")
        return specs

    def _refuse_bad(
        self, name: str, value: Tensor | SparseLogits, ids: Int64, mask: Tensor | None, stored: Codec
    ) -> None:
        bad, words = bad_elements(name, value, stored)
        if mask is not None:
            bad = bad.reshape(*mask.shape, -1).any(-1) & mask
        rows = bad.reshape(len(ids), -1).any(1).numpy()
        if rows.any():
            raise BadSignals(
                self.folder,
                f"signal {name} is {words} for {int(rows.sum())} of {len(ids)} samples, "
                f"first ids {ids[rows][:5].tolist()}",
                "check the teacher's precision and preprocessing, or take a wider codec (bfloat16, float32)",
                ids[rows].tolist(),
            )

    def _write_shard(self, count: int) -> None:
        taken: list[Rows] = []
        rest = list(self._pending)
        while count:
            head = rest.pop(0)
            if len(head) > count:
                head, tail = head.split(count)
                rest.insert(0, tail)
            taken.append(head)
            count -= len(head)
        tensors = Rows.tensors(taken, bool(self.manifest.views))
        content = safetensors.torch.save(tensors, {"format": "limbeck-cache"})
        self._enter(content, sum(map(len, taken)))
        self._pending, self._since = rest, time.monotonic()

    def _enter(self, content: bytes, rows: int) -> None:
        """Write a shard and enter it into the manifest."""
        digest = hashlib.sha256(content).hexdigest()
        last = max((int(shard.file.partition("-")[0]) for shard in self.manifest.shards), default=-1)
        shard = Shard(f"{last + 1:06d}-{digest[:12]}{SUFFIX}", rows, len(content), digest)
        try:
            self.place.write(shard.file, content)
            self.manifest.shards.append(shard)
            self.manifest.complete = False
            self.manifest.save(self.place)
        except BaseException:
            self._failed = True
            raise

    def _check_open(self) -> None:
        if self._lock is None or self._failed:
            raise UserError(
                "cache writer",
                "closed",
                "an open one",
                "open a new writer; it goes on where this one stopped",
            )
