"""What every codec costs in bytes and in closeness to the teacher, measured on the teacher's own answers."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.cache.codecs import TopK, codec
from limbeck.cache.contract import Codec
from limbeck.cache.packed import Packed
from limbeck.signals import SparseLogits

#: From the least bytes to the most; what :class:`Frontier` compares unless told otherwise.
CODECS = (
    "above:0.005:64", "above:0.002:128", "above:0.001:128", "above:0.0008:128", "above:0.0005:256", "above:0.0002:512",
    "mass:0.9:128", "mass:0.95:256", "packed:16", "packed:32", "packed:64", "packed:64:8", "packed:128",
    "topk:32:bfloat16", "topk:32", "topk:64", "topk:128", "int8", "float16",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One codec.

    Attributes:
        codec: its name.
        bytes: per row (per token of a language model), without ids and positions, which cost the same everywhere.
        kl: mean KL(teacher || decoded) in nats, the rest mass being spread evenly over the classes not kept.
        kept: mean probability of the kept classes.
        classes: mean number of classes kept.
    """

    codec: str
    bytes: float
    kl: float
    kept: float
    classes: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Frontier:
    """Adds up bytes and divergence of codecs over batches of a teacher's logits; the teacher is asked once for all.

        frontier = Frontier()
        for batch in batches:
            frontier.add(teacher(batch)["logits"], mask)
        frontier.points()

    Args:
        codecs: names; ``topk`` of more classes than there are is left out.
    """

    def __init__(self, codecs: Collection[str] = CODECS) -> None:
        self.codecs: dict[str, Codec] = {name: codec(name) for name in codecs}
        self._sums = {name: torch.zeros(4, dtype=torch.float64) for name in codecs}
        self.rows = 0

    def add(self, logits: Tensor, mask: Tensor | None = None) -> None:
        """Take in ``logits`` ``[..., C]`` where ``mask`` ``[...]`` is True."""
        rows = logits.flatten(0, -2) if mask is None else logits[mask]
        for some in rows.split(512):
            self._add(some.float())

    def points(self) -> list[Point]:
        """All codecs, those of the least bytes first."""
        means = {name: (self._sums[name] / max(self.rows, 1)).tolist() for name in self.codecs}
        return sorted((Point(name, *values) for name, values in means.items()), key=lambda point: point.bytes)

    def _add(self, logits: Tensor) -> None:
        self.rows += len(logits)
        size = logits.shape[-1]
        self.codecs = {name: one for name, one in self.codecs.items() if not isinstance(one, TopK) or one.most <= size}
        log_probs = logits.log_softmax(-1)
        probabilities = log_probs.exp()
        information = torch.where(log_probs.isneginf(), 0.0, probabilities * log_probs).sum(-1)
        total = probabilities.sum(-1, dtype=torch.float64)
        wanted = [one.most for one in self.codecs.values() if isinstance(one, (Packed, TopK))]
        sparse = SparseLogits.from_dense(logits, min(max(wanted, default=1), size))
        for name, one in self.codecs.items():
            parts = one.encode(sparse if isinstance(one, (Packed, TopK)) else logits)
            decoded = one.decode(parts, logits.shape[1:])
            stored = sum(part.nbytes for part in parts.values())
            if isinstance(decoded, SparseLogits):
                divergence, kept = _sparse(log_probs, information, total, decoded)
                count = parts["count"].sum() if "count" in parts else len(logits) * decoded.values.shape[-1]
            else:
                ratio = torch.where(log_probs.isneginf(), 0.0, log_probs - decoded.log_softmax(-1))
                divergence, kept, count = probabilities * ratio, torch.ones(len(logits)), logits.numel()
            measured = (stored, float(divergence.double().sum()), float(kept.double().sum()), int(count))
            self._sums[name] += torch.tensor(measured, dtype=torch.float64)


def _sparse(log_probs: Tensor, information: Tensor, total: Tensor, decoded: SparseLogits) -> tuple[Tensor, Tensor]:
    """KL(teacher || decoded) and the teacher's mass of the decoded classes, by row, without a dense ``decoded``."""
    mass = log_probs.gather(-1, decoded.indices).double().exp()
    # Of sum p log q, the classes that are not there have one log q.
    crossed = torch.where(mass > 0, mass * decoded.values.double(), 0.0).sum(-1)
    others = decoded.size - decoded.values.shape[-1]
    if others:
        left = (total - mass.sum(-1)).clamp_min(0)
        crossed = crossed + torch.where(left > 0, left * (decoded.rest - math.log(others)), 0.0)
    return information - crossed, mass.sum(-1)
