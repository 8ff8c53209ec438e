"""A loader for a handful of samples: epochs of any length, and draws by weight."""

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
