"""Teachers that need no network: signals by sample, signals in the batch itself, vectors by class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_tensors, fingerprint_text
from limbeck.errors import UserError
from limbeck.signals import Batch, Signals, dense, pick
from limbeck.sources.base import Source
from limbeck.sources.live import refuse_non_finite


class Table(Source):
    """Signals of every sample, in memory, looked up by id: the cache for a data set that fits there.

    Args:
        ids: int64 ``[N]``, unique.
        signals: name -> ``[N, ...]``.
    """

    def __init__(self, ids: Tensor, signals: Mapping[str, Tensor]) -> None:
        ids = torch.as_tensor(ids)
        self._ids, order = torch.sort(ids.cpu())
        if len(ids) == 0 or bool((self._ids[1:] == self._ids[:-1]).any()):
            raise UserError("ids", f"{len(ids)} ids", "one or more ids, each once")
        for name, value in signals.items():
            if len(value) != len(ids):
                raise UserError(f"signal {name}", f"{len(value)} rows", f"{len(ids)}, one per id")
        # Once for all batches, since a table does not change.
        refuse_non_finite(signals, {"id": ids})
        self._signals = {name: value.detach()[order.to(value.device)] for name, value in signals.items()}

    @classmethod
    def of(cls, source: Source, batches: Iterable[Batch], needs: Collection[str] = ()) -> Table:
        """What ``source`` says about every sample of ``batches``, asked once; of samples that share an id, the first.

        Only for samples that always look the same: an augmented one has another answer every epoch.
        """
        ids: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        seen: set[int] = set()
        for batch in batches:
            if "view" in batch:
                raise UserError("batches", "augmented ones (they have a view)", "samples that look the same every time")
            numbers = batch["id"].tolist()
            first = {number: row for row, number in reversed(list(enumerate(numbers))) if number not in seen}
            seen.update(numbers)
            rows = torch.tensor(sorted(first.values()), dtype=torch.int64)
            signals = source(batch, needs)
            ids.append(batch["id"].cpu()[rows])
            for name in signals:
                value = dense(signals, name)
                parts.setdefault(name, []).append(value[rows.to(value.device)])
        if not ids:
            raise UserError("batches", "none", "at least one batch")
        return cls(torch.cat(ids), {name: torch.cat(values) for name, values in parts.items()})

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        if "id" not in batch:
            raise UserError("batch", ", ".join(batch), "a batch with id, by which the table is read")
        ids = batch["id"].cpu()
        rows = torch.searchsorted(self._ids, ids).clamp_max(len(self._ids) - 1)
        missing = self._ids[rows] != ids
        if missing.any():
            raise UserError(
                "batch id", f"{ids[missing][:5].tolist()} ({int(missing.sum())} of {len(ids)})", "ids of the table"
            )
        signals = pick(self._signals, tuple(needs) or tuple(self._signals), "teacher")
        return {name: value[rows.to(value.device)] for name, value in signals.items()}

    def __len__(self) -> int:
        """Samples of the table."""
        return len(self._ids)

    def fingerprint(self) -> str:
        return fingerprint_tensors({"ids": self._ids, **self._signals})

    def to(self, device: torch.device | str) -> Table:
        self._signals = {name: value.to(device) for name, value in self._signals.items()}
        return self


class Given(Source):
    """A teacher whose signals are what the student is given: the batch's ``input``, a mapping of tensors.

    For students that work on a teacher's features (reverse distillation, probes): the loader reads the cached features
    once, as input, and no second table is held for the loss.
    """

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        given = batch["input"]
        if not isinstance(given, Mapping):
            raise UserError("batch input", type(given).__name__, "a mapping of the teacher's signals")
        return pick(given, tuple(needs) or tuple(given), "teacher")

    def fingerprint(self) -> str:
        return fingerprint_text("given")


class ClassVectors(Source):
    """One vector per class (text embeddings, prototypes, soft labels), given to every sample by its label.

    Args:
        vectors: ``[C, D]``.
        name: the signal that a sample's own class vector is given as. The whole table is given as ``class_vectors``.
    """

    def __init__(self, vectors: Tensor, *, name: str = "embedding") -> None:
        if vectors.dim() != 2:
            raise UserError("vectors", list(vectors.shape), "a table [classes, dimensions]")
        if name == "class_vectors":
            raise UserError("name", name, "another name: class_vectors is the whole table")
        refuse_non_finite({name: vectors}, {})
        self.vectors, self.name = vectors.detach(), name

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        if "target" not in batch:
            raise UserError("batch", ", ".join(batch), "a batch with target, by which a class vector is chosen")
        target, classes = batch["target"], len(self.vectors)
        if bool(((target < 0) | (target >= classes)).any()):
            raise UserError("target", f"{int(target.min())} to {int(target.max())}", f"0 to {classes - 1}")
        signals = {self.name: self.vectors[target.to(self.vectors.device)], "class_vectors": self.vectors}
        return pick(signals, tuple(needs) or tuple(signals), "teacher")

    def fingerprint(self) -> str:
        return fingerprint_text(self.name, fingerprint_tensors({"vectors": self.vectors}))

    def to(self, device: torch.device | str) -> ClassVectors:
        self.vectors = self.vectors.to(device)
        return self
