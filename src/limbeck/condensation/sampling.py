"""A loader that draws samples by their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.loaders import Samples, TensorLoader
from limbeck.data.views import epoch_seed
from limbeck.errors import UserError


class WeightedLoader(TensorLoader):
    """Batches drawn with replacement: sample ``i`` comes with probability ``weight_i / sum(weight)``.

    As with ``TensorLoader`` the order is a pure function of (seed, epoch) and resumes at the very next batch.

    Args:
        data, batch_size, seed, transform, collate: see ``TensorLoader``.
        weight: non-negative, one per sample; ``None`` draws all alike.
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
        self.weight = torch.ones(count) if weight is None else torch.as_tensor(weight, dtype=torch.float64)
        self.draws = count if draws is None else draws
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
        drawn = torch.multinomial(self.weight, self.draws, replacement=True, generator=generator)
        return list(torch.split(drawn, self.batch_size))

    def _meaning(self) -> dict[str, int]:
        return {**super()._meaning(), "draws": self.draws}
