"""A teacher that answered before, read from disk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.build import batch_ids, position_mask
from limbeck.cache.fingerprint import fingerprint_text
from limbeck.cache.manifest import FILE as MANIFEST
from limbeck.cache.manifest import Manifest, SignalSpec
from limbeck.cache.places import Place, place_of
from limbeck.cache.reader import CacheReader
from limbeck.cache.writer import CacheWriter
from limbeck.errors import UserError
from limbeck.signals import TOLD, Batch, Signals, SparseLogits, move, pick
from limbeck.sources.base import Source


@dataclass(frozen=True)
class Ready:
    """Signals of a batch that were read ahead, and from which source."""

    source: Cached
    signals: Mapping[str, Any]


class Cached(Source):
    """Signals from a cache that :func:`limbeck.cache.write_cache` wrote, in place of the network that gave
    them.

    A sample gets the same answer whether it comes from the cache or, missing there, from the fallback: live
    answers pass through the cache's codec too. Signals are given on the device of the batch.

    Args:
        folder: the cache; a path or a URL of fsspec.
        fallback: the teacher itself, asked for samples (and signals) that the cache lacks. Its fingerprint
            must be that of the cache. Without it, a missing sample is an error.
        expect: fingerprints of other parts (``preprocessing``, ``tokenizer``, ``data``) that the cache must
            match.
        fill: add what the fallback answered to the cache; the folder may then be new. Rows reach the disk a
            shard at a time, after every epoch and in :meth:`close`. One process at a time can fill a folder.
        codec, ragged: of a cache that ``fill`` begins; see :class:`~limbeck.cache.CacheWriter`.
        verify: ``size``, ``lazy`` or ``full``; see :class:`~limbeck.cache.CacheReader`.

    Raises:
        StaleCache: the cache is of another teacher, preprocessing, tokenizer or data; it says of which.
    """

    def __init__(
        self,
        folder: str | Path,
        fallback: Source | None = None,
        expect: Mapping[str, str] | None = None,
        *,
        fill: bool = False,
        codec: Mapping[str, str] | str = "float16",
        ragged: Collection[str] = (),
        verify: str = "lazy",
    ) -> None:
        expected = dict(expect or {})
        if fallback is not None:
            if getattr(fallback, "gradient", "none") == "through":
                raise UserError(
                    "fallback", "gradient='through'", "gradient='none'", "no gradient flows through a cache"
                )
            if fallback.state_dict():
                raise UserError(
                    "fallback",
                    type(fallback).__name__,
                    "a frozen source",
                    "its answers change, a cache's do not",
                )
            expected["teacher"] = fallback.fingerprint()
        elif fill:
            raise UserError("fill", "True without a fallback", "a fallback that gives what is missing")
        self.place, self.fallback = place_of(folder), fallback
        self.folder = self.place.folder
        self._writer: CacheWriter | None = None
        if fill:
            self._writer = _continue(self.place, expected, codec, ragged)
            # At the end of the process, or when nobody holds this source any more, what is gathered is
            # written.
            self._closer = weakref.finalize(self, self._writer.close)
        self.reader = CacheReader(self.place, expected, verify=verify, allow_empty=fill)

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        specs = self._specs()
        names = _names(needs, specs)
        ready = batch.get("ready")
        if isinstance(ready, Ready) and ready.source is self and set(names) <= set(ready.signals):
            return {name: move(ready.signals[name], batch_ids(batch).device) for name in names}
        if not specs:
            return self._ask(batch, names)
        stored = [name for name in names if name in specs]
        others = [name for name in names if name not in specs]
        answer = self._stored(batch, stored) if stored else {}
        if others and self.fallback is None:
            raise UserError("cached signal", others, sorted(specs), "write the cache again with it, or give a fallback")
        if others and self.fallback is not None:
            with torch.no_grad():
                answer.update(pick(self.fallback(batch, others), others, "teacher"))
        return answer

    def attach(self, needs: Collection[str] = ()) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """A function that reads a batch's signals and puts them into it, for ``TensorLoader(ahead=...)``.

        A batch with samples that only the fallback knows is left as it is.
        """

        def read(batch: dict[str, Any]) -> dict[str, Any]:
            if self.fallback is not None and not self.reader.contains(batch_ids(batch), batch.get("view")).all():
                return batch
            return {**batch, "ready": Ready(self, self._read(batch, _names(needs, self.reader.signals)))}

        return read

    def fingerprint(self) -> str:
        """The teacher's, for this is what it says; so a run may go on with the cache in its place."""
        parts = self.reader.manifest.fingerprint
        return parts.get("teacher") or fingerprint_text("cache", parts)

    def to(self, device: torch.device | str) -> Cached:
        if self.fallback is not None:
            self.fallback.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [] if self.fallback is None else self.fallback.modules()

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        self.flush()

    def flush(self) -> None:
        """Put what the fallback answered so far on disk."""
        if self._writer is not None:
            self._writer.flush()
            self._follow()

    def close(self) -> None:
        """Write what is left and let another process fill the cache."""
        if self._writer is not None:
            self._closer()
            self._writer = None
            self.reader.refresh()

    def _specs(self) -> Mapping[str, SignalSpec]:
        return self.reader.signals if self._writer is None else self._writer.manifest.signals

    def _stored(self, batch: Batch, names: list[str]) -> dict[str, Any]:
        """Signals that the cache has for some or all of the samples."""
        if self.fallback is None:
            return self._read(batch, names)
        here = self.reader.contains(batch_ids(batch), batch.get("view"))
        if here.all():
            return self._read(batch, names)
        live = self._ask(select(batch, ~here), names)
        if not here.any():
            return live
        known = self._read(select(batch, here), names)
        return {name: _merge(known[name], live[name], here) for name in names}

    def _read(self, batch: Batch, names: Collection[str]) -> dict[str, Any]:
        ids = batch_ids(batch)
        ragged = any(self.reader.signals[name].ragged for name in names)
        mask = position_mask(batch) if ragged else None
        return self.reader.read(ids, batch.get("view"), names, mask=mask, device=ids.device)

    def _ask(self, batch: Batch, names: Collection[str]) -> dict[str, Any]:
        """What the cache would say about samples that it lacks; fills it on the way."""
        if self.fallback is None:
            return self._read(batch, names)
        writer, specs = self._writer, self._specs()
        # Every sample of a cache has all of its signals, whatever this call needs.
        wanted = tuple(specs) if writer is not None and specs else tuple(names)
        with torch.no_grad():
            signals = self.fallback(batch, wanted)
        signals = pick(signals, wanted or tuple(signals), "teacher")
        if writer is not None:
            mask = position_mask(batch) if writer.ragged else None
            writer.write(batch_ids(batch), signals, batch.get("view"), mask)
            self._follow()
            specs = self._specs()
        device = batch_ids(batch).device
        return {name: move(_as_stored(signals[name], specs[name], batch), device) for name in _names(names, specs)}

    def _follow(self) -> None:
        if self._writer is not None and len(self._writer.manifest.shards) > len(self.reader.manifest.shards):
            self.reader.refresh()


def _names(needs: Collection[str], stored: Collection[str]) -> tuple[str, ...]:
    """What is read for ``needs``: also what says which samples the teacher answered."""
    return tuple(dict.fromkeys((*(needs or stored), *({TOLD} & set(stored)))))


def select(batch: Batch, rows: Tensor) -> dict[str, Any]:
    """The samples of a batch for which ``rows`` (bool ``[B]``) is True."""
    return {name: _select(value, rows) for name, value in batch.items()}


def _select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == len(rows):
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {name: _select(item, rows) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) == len(rows):
        return type(value)(item for item, kept in zip(value, rows.tolist(), strict=True) if kept)
    return value


def _merge(known: Tensor | SparseLogits, live: Tensor | SparseLogits, here: Tensor) -> Tensor | SparseLogits:
    if isinstance(known, SparseLogits) and isinstance(live, SparseLogits):
        values, indices, rest = (
            _merge_rows(getattr(known, part), getattr(live, part), here) for part in ("values", "indices", "rest")
        )
        return SparseLogits(values, indices, rest, known.size)
    if isinstance(known, Tensor) and isinstance(live, Tensor):
        return _merge_rows(known, live, here)
    raise UserError("signal", f"{type(known).__name__} and {type(live).__name__}", "one kind for every sample")


def _merge_rows(known: Tensor, live: Tensor, here: Tensor) -> Tensor:
    here = here.to(known.device)
    merged = known.new_empty(len(here), *known.shape[1:])
    merged[here] = known
    merged[~here] = live.to(known.dtype)
    return merged


def _as_stored(value: Tensor | SparseLogits, spec: SignalSpec, batch: Batch) -> Tensor | SparseLogits:
    """What the cache gives back of a live answer."""
    codec = spec.open()
    if not spec.ragged:
        return codec.decode(codec.encode(value), spec.shape)
    mask = position_mask(batch)
    # What stands at other positions may be anything, and is not stored.
    counted = (
        value.map(lambda t: t[mask.to(t.device)]) if isinstance(value, SparseLogits) else value[mask.to(value.device)]
    )
    decoded = codec.decode(codec.encode(counted), spec.shape)

    def place(rows: Tensor) -> Tensor:
        placed = rows.new_zeros(*mask.shape, *rows.shape[1:])
        placed[mask.to(rows.device)] = rows
        return placed

    return decoded.map(place) if isinstance(decoded, SparseLogits) else place(decoded)


def _continue(
    place: Place, expected: Mapping[str, str], codec: Mapping[str, str] | str, ragged: Collection[str]
) -> CacheWriter:
    """A writer that goes on with the cache in ``folder`` as it was begun, or begins one."""
    if not place.has(MANIFEST):
        return CacheWriter(place, expected, codec, ragged=ragged)
    manifest = Manifest.load(place)
    manifest.expect(place.folder, expected)
    if manifest.signals:
        codec = {name: spec.codec for name, spec in manifest.signals.items()}
        ragged = [name for name, spec in manifest.signals.items() if spec.ragged]
    return CacheWriter(place, manifest.fingerprint, codec, ragged=ragged, verify="size")
