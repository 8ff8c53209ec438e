"""Nearest neighbours among a frozen network's local features: no training, and the rival of every anomaly method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError


class PatchMemory:
    """Distance of every patch from the nearest patch of any good image.

    Maps of the chosen levels are averaged over 3 x 3 positions, brought to the finest of their grids and joined along
    their channels; the vectors of the good images are the memory.

        a(x) = min over memory m of |p(x) - m|

    Args:
        levels: names of the maps, the middle ones of the network as a rule.
        size: vectors kept at most, drawn evenly; more than the good images have keeps all.
        seed: of the draw.

    PatchCore (Roth et al., CVPR 2022) chooses its memory by greedy k-center and scales an image's score by the
    neighbourhood of its worst patch; here the memory is a random part of it and the score is the plain maximum.
    """

    def __init__(self, levels: Sequence[str], *, size: int = 4000, seed: int = 0) -> None:
        if not levels or size < 1:
            raise UserError("levels, size", f"{list(levels)}, {size}", "one or more levels, one or more vectors")
        self.levels, self.size, self.seed = tuple(levels), size, seed

    def fit(self, features: Mapping[str, Tensor]) -> PatchMemory:
        """Remember the maps of good images, name -> ``[N, C, h, w]``."""
        vectors = self._patches(features).flatten(0, 2)
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(self.seed))
        self.memory_ = vectors[order[: self.size]]
        return self

    def predict(self, features: Mapping[str, Tensor], batch_size: int = 32) -> Tensor:
        """Distances ``[N, h, w]`` on the finest of the levels' grids."""
        patches = self._patches(features)
        return torch.cat([torch.cdist(part.flatten(0, 2), self.memory_).amin(1).view(part.shape[:3])
                          for part in patches.split(batch_size)])  # fmt: skip

    def _patches(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, h, w, C]``."""
        maps = [functional.avg_pool2d(features[name], 3, 1, 1, count_include_pad=False) for name in self.levels]
        size = max((tuple(one.shape[-2:]) for one in maps), key=lambda grid: grid[0] * grid[1])
        raised = [
            one if tuple(one.shape[-2:]) == size
            else functional.interpolate(one, size=size, mode="bilinear", align_corners=False)
            for one in maps
        ]  # fmt: skip
        return torch.cat(raised, 1).permute(0, 2, 3, 1)
