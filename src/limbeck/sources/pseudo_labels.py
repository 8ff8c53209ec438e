"""Labels that networks gave, cycle by cycle: each round with its number and producer, kept on disk and resumable."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from limbeck.cache.build import write_cache
from limbeck.cache.manifest import FILE as MANIFEST
from limbeck.cache.manifest import Manifest
from limbeck.errors import UserError
from limbeck.signals import Batch
from limbeck.sources.base import Source
from limbeck.sources.cached import Cached
from limbeck.sources.stored import Table


@dataclass(frozen=True)
class Round:
    """One round of labels: who gave them in which cycle, how many there are, and whether all are there."""

    cycle: int
    producer: str
    rows: int
    complete: bool


class PseudoLabels:
    """What producers said about a pool of samples, each asked once per cycle.

    >>> store = PseudoLabels("labels/", data=fingerprint_text(pairs))
    >>> teacher = store.ask(1, "bi-0", Live(encoder, forward=pair_cosine), batches)   # a source, by sample id

    Args:
        folder: every round is a teacher cache in a folder of its own, ``cycle-1-bi-0``. A round that was cut is
            continued, a finished one is read without asking again, and labels of other weights or data are refused.
            Without a folder the rounds are in memory.
        data: fingerprint of the pool and of how it is tokenised.
        codec: how labels are stored; ``exact`` so that a run with a folder gives the bits of one without.
    """

    def __init__(self, folder: Path | str | None = None, *, data: str = "", codec: str = "exact") -> None:
        self.folder = Path(folder) if folder is not None else None
        self.data, self.codec = data, codec
        self._memory: dict[tuple[int, str], tuple[Round, Source]] = {}

    def ask(
        self, cycle: int, producer: str, source: Source, batches: Iterable[Batch], needs: Collection[str] = ("score",)
    ) -> Source:
        """The labels of one round as a source that looks them up by sample id.

        Raises:
            StaleCache: the folder holds this round, but of a producer with other weights or of other data.
        """
        _check_name(producer)
        if self.folder is None:
            table = Table.of(source, batches, needs)
            self._memory[cycle, producer] = (Round(cycle, producer, len(table), True), table)
            return table
        place = _place(self.folder, cycle, producer)
        about = {"data": self.data, "cycle": str(cycle), "producer": producer}
        write_cache(source, batches, place, needs, self.codec, about)
        return Cached(place, expect={**about, "teacher": source.fingerprint()})

    def read(self, cycle: int, producer: str) -> Source:
        """The labels of an earlier round, without their producer."""
        if self.folder is None:
            if (cycle, producer) not in self._memory:
                raise UserError("round", f"cycle {cycle} of {producer}", [(r.cycle, r.producer) for r in self.rounds()])
            return self._memory[cycle, producer][1]
        return Cached(
            _place(self.folder, cycle, producer), expect={"data": self.data, "cycle": str(cycle), "producer": producer}
        )

    def rounds(self) -> list[Round]:
        """Every round there is, by cycle and producer."""
        if self.folder is None:
            found = [kept for kept, _ in self._memory.values()]
        else:
            found = [_round(path.parent) for path in self.folder.glob(f"cycle-*/{MANIFEST}")]
        return sorted(found, key=lambda one: (one.cycle, one.producer))

    def clear(self) -> None:
        """Forget every round."""
        self._memory.clear()
        if self.folder is not None:
            for manifest in list(self.folder.glob(f"cycle-*/{MANIFEST}")):
                shutil.rmtree(manifest.parent)


def _place(folder: Path, cycle: int, producer: str) -> Path:
    return folder / f"cycle-{cycle}-{producer}"


def _round(place: Path) -> Round:
    manifest = Manifest.load(place)
    about = manifest.fingerprint
    return Round(int(about["cycle"]), about["producer"], manifest.rows, manifest.complete)


def _check_name(producer: str) -> None:
    if not producer or not all(letter.isalnum() or letter in "-_." for letter in producer):
        raise UserError("producer", producer, "letters, digits and - _ . (it names a folder)")
