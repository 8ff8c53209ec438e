"""How large a cache will be and how long it will take, before it is written."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from limbeck.cache.build import Teacher, batch_ids, position_mask
from limbeck.cache.checks import encode, rows_of, specs_of
from limbeck.cache.codecs import codec as codec_of
from limbeck.errors import UserError
from limbeck.signals import Batch, Signals, dense_or_sparse, pick

#: Id, and where the positions of a ragged sample end.
_KEY_BYTES = 8


@dataclass(frozen=True)
class Estimate:
    """What writing a cache will cost.

    Attributes:
        samples: that will be written, times their views.
        bytes: of all shards, and of ``sample`` and ``position`` (of a ragged signal; of the sample without one).
        seconds: of the whole work, with one writer.
        exact: whether the codecs take the same bytes for every row, so that only lengths are estimated.
    """

    samples: int
    bytes: int
    bytes_per_sample: float
    bytes_per_position: float
    seconds: float
    exact: bool

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def estimate(
    source: Teacher,
    batch: Batch,
    samples: int,
    needs: Collection[str] = ("logits",),
    codec: Mapping[str, str] | str = "float16",
    *,
    ragged: Collection[str] = (),
    positions: int | None = None,
    writers: int = 1,
) -> Estimate:
    """Ask ``source`` about one batch, encode its answer, and scale bytes and seconds up.

    Bytes are exact for codecs of fixed size where ``positions`` is given, and measured on this batch for others.

    Args:
        source: the teacher.
        batch: like those that will be written; the first run of a network is slower than the others, so it is asked
            twice and the second time counts.
        samples: that will be written (times their views).
        needs, codec, ragged: as for :func:`~limbeck.cache.write_cache`.
        positions: of all samples together, for ragged signals; the batch's mean length times ``samples`` without it.
        writers: that work side by side, each on a machine of its own.
    """
    if samples < 0 or writers < 1:
        raise UserError("samples" if samples < 0 else "writers", min(samples, writers), "0 or more, and 1 or more")
    with torch.no_grad():
        source(batch, needs)
        start = time.perf_counter()
        answer = source(batch, needs)
        signals = pick(answer, needs, "teacher") if needs else dict(answer)
        mask = position_mask(batch).cpu() if ragged else None
        count = len(batch_ids(batch))
        by_row, exact = _row_bytes(signals, count, mask, ragged, codec)
        seconds = time.perf_counter() - start
    here = count if mask is None else int(mask.sum())
    length = here / max(count, 1) if positions is None else positions / max(samples, 1)
    fixed = _KEY_BYTES * (1 + ("view" in batch) + bool(ragged))
    of_samples = fixed + sum(size for name, size in by_row.items() if name not in ragged)
    of_positions = sum(size for name, size in by_row.items() if name in ragged)
    per_sample = of_samples + of_positions * length
    work = samples / max(count, 1) if positions is None or not here else positions / here
    return Estimate(
        samples=samples,
        bytes=round(samples * per_sample),
        bytes_per_sample=per_sample,
        bytes_per_position=of_positions if ragged else per_sample,
        seconds=seconds * work / writers,
        exact=exact and (not ragged or positions is not None),
    )


def _row_bytes(
    signals: Signals, count: int, mask: torch.Tensor | None, ragged: Collection[str], codec: Mapping[str, str] | str
) -> tuple[dict[str, float], bool]:
    """Bytes of one row of every signal, and whether no row takes more."""

    def name_of(name: str, dtype: torch.dtype) -> str:
        if not dtype.is_floating_point:
            return "exact"
        return codec if isinstance(codec, str) else codec.get(name, "float16")

    by_row = {}
    specs = specs_of(signals, count, mask, ragged, name_of)
    for name, spec in specs.items():
        value = dense_or_sparse(signals, name)
        spec = spec.learnt(rows_of(value, mask) if spec.ragged and mask is not None else value)
        parts = encode(value, mask if spec.ragged else None, spec)
        rows = int(mask.sum()) if spec.ragged and mask is not None else count
        # A stream has a place of its own for every sample.
        streams = spec.open().streams
        by_row[name] = (sum(part.nbytes for part in parts.values()) + _KEY_BYTES * count * len(streams)) / max(rows, 1)
    return by_row, not any(codec_of(spec.codec).streams for spec in specs.values())
