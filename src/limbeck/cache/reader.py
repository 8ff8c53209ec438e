"""Reading a cache: whole batches by id, gathered from memory-mapped shards and decoded at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch
from torch import Tensor

from limbeck.cache.checks import keys_of
from limbeck.cache.errors import EmptyCache, MissingSamples, TornCache
from limbeck.cache.gather import Array, Layout, Plan, layout_of, plan_of
from limbeck.cache.index import Index, Int64
from limbeck.cache.manifest import Manifest, Shard, SignalSpec
from limbeck.cache.places import Place, place_of
from limbeck.errors import UserError
from limbeck.signals import SparseLogits

CHECKS = ("size", "lazy", "full")
REMEDY = "run the writer again: it drops torn shards and writes only what is missing"


class CacheReader:
    """Signals by sample id from a folder that :class:`~limbeck.cache.CacheWriter` wrote.

    Looking up a batch costs a few array operations however many samples it has. Shards are memory-mapped, so
    a cache may be larger than memory, and processes on one machine share its pages.

    Args:
        folder: the cache; a path or a URL of fsspec. The parts of several writers are read as one.
        expect: fingerprints that the cache must have been written with; parts that are not named are not
            compared.
        verify: ``size`` checks that every shard is there and whole in length; ``lazy`` (the default) also
            compares a shard's checksum when it is first read from; ``full`` compares all checksums now.
        dtype: of decoded floating-point signals; None keeps what is stored.
        allow_empty: accept a cache without a sample (one that is about to be filled).

    Raises:
        StaleCache, ForeignCache, TornCache, EmptyCache: the message says what differs or is broken.
    """

    def __init__(
        self,
        folder: str | Path | Place,
        expect: Mapping[str, str] | None = None,
        *,
        verify: str = "lazy",
        dtype: torch.dtype | None = torch.float32,
        allow_empty: bool = False,
    ) -> None:
        if verify not in CHECKS:
            raise UserError("verify", verify, CHECKS)
        self.place = place_of(folder)
        self.folder = self.place.folder
        self.dtype = dtype
        self._expect, self._verify, self._allow_empty = dict(expect or {}), verify, allow_empty
        self._good: set[str] = set()
        self.refresh()
        if verify == "full":
            self.verify()

    def refresh(self) -> None:
        """Take in what a writer has added since."""
        self.manifest = manifest = Manifest.gather(self.place)
        manifest.expect(self.folder, self._expect)
        if not manifest.rows and not self._allow_empty:
            raise EmptyCache(self.folder, "it holds no samples", "write some first")
        for shard in manifest.shards:
            self._refuse_torn(manifest.check_size(self.place, shard))
        self._codecs = {name: spec.open() for name, spec in manifest.signals.items()}
        self._open: dict[int, Mapping[str, Array]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        keys = [load_keys(self.place, shard, bool(manifest.views)) for shard in manifest.shards]
        none = numpy.zeros(0, dtype=numpy.int64)
        self._ids = numpy.concatenate([none, *(ids for ids, _ in keys)])
        self._seeds = numpy.concatenate([none, *(views for _, views in keys)])
        self._index = Index(self._ids, self._seeds)
        self._starts = numpy.cumsum([0, *(shard.rows for shard in manifest.shards)])

    def verify(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            TornCache: at the first that differs.
        """
        for shard in self.manifest.shards:
            self._refuse_torn(self.manifest.check_content(self.place, shard))
            self._good.add(shard.file)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def signals(self) -> Mapping[str, SignalSpec]:
        """What is stored for every sample, and how."""
        return self.manifest.signals

    def ids(self) -> Tensor:
        """Sample ids in the order of writing; an id stands once per view."""
        return torch.from_numpy(self._ids.copy())

    def views(self) -> Tensor | None:
        """View seeds row for row with :meth:`ids`; None where the cache has none."""
        return torch.from_numpy(self._seeds.copy()) if self.manifest.views else None

    def contains(self, ids: Tensor, views: Tensor | None = None) -> Tensor:
        """Which samples are there: bool ``[B]``, on the CPU."""
        return torch.from_numpy(self._rows(ids, views) >= 0)

    def read(
        self,
        ids: Tensor,
        views: Tensor | None = None,
        names: Collection[str] = (),
        *,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor | SparseLogits]:
        """Signals of a batch, row for row with ``ids`` (in any order, repeated or not).

        Args:
            ids: integers ``[B]``.
            views: seeds ``[B]`` where the cache was written with views.
            names: which signals; all by default.
            mask: bool ``[B, L]``, where the positions of ragged signals go; it must count as many per sample
                as were stored. Without it they are put to the left and a signal ``mask`` is added.
            device: where to decode to.

        Returns:
            name -> ``[B, ...]``, or ``[B, L, ...]`` with zeros between the positions of a ragged signal.

        Raises:
            MissingSamples: naming how many and the first few.
        """
        names = tuple(names) or tuple(self.signals)
        for name in names:
            if name not in self.signals:
                raise UserError("cached signal", name, sorted(self.signals), "write the cache again with this signal")
        rows = self._rows(ids, views)
        self._refuse_missing(rows, ids)
        plan = plan_of(rows, self._starts)
        answer: dict[str, Tensor | SparseLogits] = {}
        layout = None
        for name in names:
            spec = self.signals[name]
            if spec.ragged and layout is None:
                layout = self._layout(plan, mask, ids)
            answer[name] = self._signal(name, spec, plan, layout if spec.ragged else None, device)
        if layout is not None and mask is None and "mask" not in answer:
            answer["mask"] = torch.from_numpy(layout.mask).to(device)
        return answer

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the folder itself; mapped memory does not travel.
        return _reopen, (self.folder, self._expect, self._verify, self.dtype, self._allow_empty)

    def _rows(self, ids: Tensor, views: Tensor | None) -> Int64:
        keys = keys_of("id", ids)
        if self.manifest.views is False and views is not None:
            raise UserError(
                "view", "seeds of augmented views", "batches without views, as the cache was written",
                "write a cache of these views, or leave the augmentation out",
            )  # fmt: skip
        if self.manifest.views and views is None:
            raise UserError("view", "none", "the seed of every sample's view, as the cache was written")
        return self._index.rows(keys, numpy.zeros_like(keys) if views is None else keys_of("view", views))

    def _refuse_missing(self, rows: Int64, ids: Tensor) -> None:
        missing = rows < 0
        if not missing.any():
            return
        lost = ids.cpu()[torch.from_numpy(missing)].tolist()
        state = "" if self.manifest.complete else " and was not finished"
        raise MissingSamples(
            self.folder,
            f"{len(lost)} of {len(rows)} samples are not there, first ids {lost[:5]}; "
            f"it holds {len(self)} samples{state}",
            "run its writer again for them, or give a fallback source",
            lost,
        )

    def _signal(
        self, name: str, spec: SignalSpec, plan: Plan, layout: Layout | None, device: torch.device | str
    ) -> Tensor | SparseLogits:
        prefix, streams = f"signal/{name}/", self._codecs[name].streams
        parts: dict[str, Tensor] = {}
        for part in (key for key in self._arrays(plan.shards[0] if plan.shards else 0) if key.startswith(prefix)):
            if part.endswith("/end"):
                continue
            stored = [self._arrays(shard)[part] for shard in plan.shards]
            like = stored[0] if stored else self._arrays(0)[part]
            if part.removeprefix(prefix) in streams:
                ends = [self._arrays(shard)[f"{part}/end"] for shard in plan.shards]
                joined = plan.gather_bytes(stored, ends, like, ordered=layout is None)
            else:
                joined = plan.gather(stored, like) if layout is None else layout.gather(stored, like)
            tensor = torch.from_numpy(joined)
            if self._dtypes[part] == torch.bfloat16:
                tensor = tensor.view(torch.bfloat16)
            parts[part.removeprefix(prefix)] = tensor.to(device, non_blocking=True)
        value = self._codecs[name].decode(parts, spec.shape, self.dtype)
        if layout is None:
            return value
        return value.map(layout.place) if isinstance(value, SparseLogits) else layout.place(value)

    def _layout(self, plan: Plan, mask: Tensor | None, ids: Tensor) -> Layout:
        ends = [self._arrays(shard)["end"] for shard in plan.shards]
        layout = layout_of(plan, ends, None if mask is None else mask.detach().cpu().bool().numpy())
        if layout.misfits.any():
            wrong = ids.cpu()[torch.from_numpy(layout.misfits)][:5].tolist()
            raise UserError(
                "mask", f"{int(layout.mask.sum())} positions", f"{int(layout.lengths.sum())}, as stored",
                f"the samples {wrong} were written with another tokenizer, length or mask",
            )  # fmt: skip
        return layout

    def _arrays(self, shard: int) -> Mapping[str, Array]:
        """The mapped arrays of a shard; the first call opens it and, if asked for, compares its checksum."""
        if shard not in self._open:
            entry = self.manifest.shards[shard]
            if self._verify == "lazy" and entry.file not in self._good:
                self._refuse_torn(self.manifest.check_content(self.place, entry))
                self._good.add(entry.file)
            tensors = _map(self.place, entry)
            self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            self._open[shard] = {name: _array(tensor) for name, tensor in tensors.items()}
        return self._open[shard]

    def _refuse_torn(self, wrong: str) -> None:
        if wrong:
            raise TornCache(self.folder, wrong, REMEDY)


def load_keys(place: Place, shard: Shard, views: bool) -> tuple[Int64, Int64]:
    """Ids and views of a shard's samples."""
    tensors = _map(place, shard, ("id", "view") if views else ("id",))
    ids: Int64 = tensors["id"].numpy()
    return ids, tensors["view"].numpy() if views else numpy.zeros_like(ids)


def _map(place: Place, shard: Shard, names: Collection[str] = ()) -> Mapping[str, Tensor]:
    try:
        return place.tensors(shard.file, shard.sha256, names)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise TornCache(place.folder, f"shard {shard.file} cannot be read ({error})", REMEDY) from error


def _array(tensor: Tensor) -> Array:
    array: Array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _reopen(
    folder: Path | str, expect: dict[str, str], verify: str, dtype: torch.dtype | None, empty: bool
) -> CacheReader:
    return CacheReader(folder, expect, verify="size" if verify == "size" else "lazy", dtype=dtype, allow_empty=empty)
