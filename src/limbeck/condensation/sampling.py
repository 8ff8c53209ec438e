"""Loaders for a handful of samples (epochs of any length, draws by weight), and by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.loaders import Samples, TensorLoader
from limbeck.data.views import epoch_seed, mix, view_seeds
from limbeck.errors import UserError


class WeightedLoader(TensorLoader):
    """Batches drawn with replacement: sample ``i`` comes with probability ``weight_i / sum(weight)``.

    Without weights the samples are gone through in ever new orders, so that none comes again before all others came.

    As with ``TensorLoader`` the order is a pure function of (seed, epoch) and resumes at the very next batch. A sample
    that comes several times in an epoch gets another ``view`` each time: views depend on the draw too.

    Args:
        data, batch_size, seed, transform, collate: see ``TensorLoader``.
        weight: non-negative, one per sample; ``None`` for all alike.
        draws: samples of one epoch; the number of samples by default. A set of twenty samples needs no end of an epoch
            after every batch.
    """

    def __init__(
        self,
        data: Samples | Mapping[str, Any],
        batch_size: int,
        *,
        weight: Tensor | Sequence[float] | None = None,
        draws: int | None = None,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__(data, batch_size, seed=seed, transform=transform, collate=collate)
        count = self.samples
        self.weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float64)
        self.draws = count if draws is None else draws
        if self.weight is not None:
            if len(self.weight) != count:
                raise UserError("weight", f"{len(self.weight)} weights", f"one per sample, {count}")
            if bool((self.weight < 0).any()) or not bool((self.weight > 0).any()):
                raise UserError("weight", "negative or all zero", "non-negative weights, one of them positive")
        if self.draws < 1:
            raise UserError("draws", self.draws, "1 or more")

    def __len__(self) -> int:
        """Batches of one epoch."""
        return -(-self.draws // self.batch_size)

    def order(self, epoch: int) -> list[Tensor]:
        """Positions of the samples of every global batch of ``epoch``."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        if self.weight is None:
            passes = -(-self.draws // self.samples)
            drawn = torch.cat([torch.randperm(self.samples, generator=generator) for _ in range(passes)])[: self.draws]
        else:
            drawn = torch.multinomial(self.weight, self.draws, replacement=True, generator=generator)
        return list(torch.split(drawn, self.batch_size))

    def _views(self, ids: Tensor, epoch: int, draws: Tensor) -> Tensor:
        return mix(view_seeds(self.seed, epoch, ids) + draws)

    def _meaning(self) -> dict[str, int]:
        return {**super()._meaning(), "draws": self.draws}


class ClassLoader(TensorLoader):
    """Batches with equally many samples of every class, sorted by class: what a distiller compares with.

    Inside a class a batch has no sample twice, unless the class has fewer than ``per_class``. The order is a pure
    function of (seed, epoch) and resumes at the very next batch.

    Args:
        data: labelled samples.
        per_class: samples of every class in a batch.
        batches: of one epoch.
    """

    def __init__(self, data: Samples, per_class: int, *, batches: int = 50, seed: int = 0) -> None:
        if data.target is None or per_class < 1 or batches < 1:
            given = "no target" if data.target is None else f"per_class {per_class}, batches {batches}"
            raise UserError("class loader", given, "labelled samples, and 1 or more")
        self.members = [(data.target == one).nonzero().squeeze(-1) for one in data.target.unique()]
        self.per_class, self.batches = per_class, batches
        super().__init__(data, per_class * len(self.members), seed=seed)

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self.batches

    def order(self, epoch: int) -> list[Tensor]:
        """Positions of the samples of every batch of ``epoch``."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        return [torch.cat([self._draw(one, generator) for one in self.members]) for _ in range(self.batches)]

    def set_rank(self, rank: int, world_size: int) -> None:
        """One process alone: several each take classes of their own instead."""
        if world_size > 1:
            hint = "give every process a split with its share of the classes; the sets add up"
            raise UserError("world_size", world_size, "1, since a batch is sorted by class", hint)
        super().set_rank(rank, world_size)

    def _draw(self, members: Tensor, generator: torch.Generator) -> Tensor:
        if len(members) >= self.per_class:
            return members[torch.randperm(len(members), generator=generator)[: self.per_class]]
        return members[torch.randint(len(members), (self.per_class,), generator=generator)]

    def _meaning(self) -> dict[str, int]:
        return {**super()._meaning(), "batches": self.batches}
