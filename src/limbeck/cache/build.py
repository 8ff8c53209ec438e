"""Filling a cache from a source, in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.cache.errors import EmptyCache
from limbeck.cache.manifest import Manifest
from limbeck.cache.places import Place
from limbeck.cache.writer import CacheWriter
from limbeck.errors import UserError
from limbeck.signals import Batch, Signals, pick


class Teacher(Protocol):
    """The part of a source that a cache needs."""

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals: ...

    def fingerprint(self) -> str: ...

    def state_dict(self) -> dict[str, Any]: ...


def write_cache(
    source: Teacher,
    batches: Iterable[Batch],
    folder: str | Path | Place,
    needs: Collection[str] = ("logits",),
    codec: Mapping[str, str] | str = "float16",
    fingerprint: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    shard_rows: int = 4096,
    ragged: Collection[str] = (),
    part: tuple[int, int] | None = None,
) -> Manifest:
    """Ask ``source`` about every batch once and keep its signals; go on where an earlier call stopped.

    A batch whose samples are all there is skipped without asking. A batch that is partly there is asked
    whole, so that the answers, which may depend on a batch's size in the last bit, do not depend on
    interruptions.

    Args:
        source: the teacher; it may not change during training.
        batches: with ``id``, and ``view`` if the inputs are augmented.
        folder: of the cache.
        needs: names of the signals to keep; ``told`` is kept with them where the source gives it.
        codec: for all signals, or one per name.
        fingerprint: of what else decides the signals (``preprocessing``, ``tokenizer``, ``data``); the
            teacher's is added.
        progress: called after every batch with the samples seen so far and the samples added by this call.
        shard_rows: samples per shard, which is what a kill may cost.
        ragged: signals that are ``[B, L, ...]`` and stored for the positions of :func:`position_mask` alone.
        part: number of this writer and of how many, where several processes write one cache: each takes every
            ``writers``-th batch; see :class:`~limbeck.cache.CacheWriter`.

    Raises:
        CacheError: the folder holds another cache, the disk is full, the teacher answers NaN, or there is no
            sample.
    """
    if source.state_dict():
        raise UserError("source", type(source).__name__, "a frozen one", "a teacher that changes cannot be cached")
    whole = {"teacher": source.fingerprint(), **(fingerprint or {})}
    if whole["teacher"] != source.fingerprint():
        raise UserError("fingerprint", "another teacher's", "parts besides the teacher: preprocessing, tokenizer, data")
    seen = added = 0
    number, writers = part or (0, 1)
    with CacheWriter(folder, whole, codec, shard_rows, ragged=ragged, part=part) as writer:
        for place, batch in enumerate(batches):
            if place % writers != number:
                continue
            ids, views = batch_ids(batch), batch.get("view")
            if not writer.done(ids, views).all():
                with torch.no_grad():
                    signals = source(batch, needs)
                kept = pick(signals, needs, "teacher") if needs else signals
                added += writer.write(ids, kept, views, position_mask(batch) if ragged else None)
            seen += len(ids)
            if progress is not None:
                progress(seen, added)
        if not seen:
            raise EmptyCache(writer.folder, "there was no sample to write", "check the data and its selection")
        return writer.finish()


def batch_ids(batch: Batch) -> Tensor:
    """The ids of a batch, or an error that says what they are for."""
    if "id" not in batch:
        raise UserError("batch", sorted(batch), "a mapping with id", "a cache finds samples by their stable ids")
    ids: Tensor = batch["id"]
    return ids


def position_mask(batch: Batch) -> Tensor:
    """Positions of every sample that count: the batch's ``mask`` ``[B, L]``, else ``attention_mask``."""
    mask = batch.get("mask")
    given = batch.get("input")
    if not (isinstance(mask, Tensor) and mask.dim() == 2) and isinstance(given, Mapping):
        mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UserError("batch", sorted(batch), "a mask [B, L] or an input with attention_mask, for ragged signals")
    return mask.bool()
