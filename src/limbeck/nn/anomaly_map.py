"""Anomaly maps: where a student's feature maps point elsewhere than the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.losses.features import cosine_distance

WEIGHTS = ("stress", "uniform")


class AnomalyMap(nn.Module):
    """One map per image from the maps of all levels.

        a_l(x) = 1 - cos(t_l(x), s_l(x)),   A = G_sigma * sum_l w_l upsample(a_l),   score = max_x A(x)

    Args:
        size: height and width of the map.
        weights: ``stress`` is ``w_l = 1 / (h_l w_l)``, by which a level of half the grid counts four times; ``uniform``
            counts all alike; or a weight by name.
        sigma: of the Gaussian, in pixels; 0 leaves it out.

    Called with the student's and the teacher's maps by name, ``[B, C_l, h_l, w_l]``, it returns ``[B, *size]``. A
    position where one of the two is zero counts 1, where both are 0.
    """

    def __init__(
        self, size: tuple[int, int], *, weights: str | Mapping[str, float] = "stress", sigma: float = 4.0
    ) -> None:
        super().__init__()
        if isinstance(weights, str) and weights not in WEIGHTS:
            raise UserError("weights", weights, (*WEIGHTS, "a mapping by level"))
        self.size, self.weights, self.sigma = size, weights, sigma

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        if student.keys() != teacher.keys():
            raise UserError("levels of the student", sorted(student), f"those of the teacher, {sorted(teacher)}")
        levels = {
            name: cosine_distance(student[name], maps, axis=1, reduction="none") for name, maps in teacher.items()
        }
        raised = [self.weight(name, maps) * upsample(maps, self.size) for name, maps in levels.items()]
        return smooth(torch.stack(raised).sum(0), self.sigma)

    def weight(self, name: str, maps: Tensor) -> float:
        """The weight of a level from its maps ``[B, h, w]``."""
        if isinstance(self.weights, str):
            return 1 / (maps.shape[-2] * maps.shape[-1]) if self.weights == "stress" else 1.0
        if name not in self.weights:
            raise UserError("weights", name, self.weights)
        return self.weights[name]


def image_scores(maps: Tensor) -> Tensor:
    """The score of an image: the maximum of its map; ``[B, H, W] -> [B]``."""
    return maps.flatten(1).amax(1)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, h, w] -> [B, *size]``, bilinear."""
    return functional.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the last two axes, edges mirrored, cut off at four sigma."""
    if sigma <= 0:
        return maps
    rows, columns = (_gaussian(side, sigma, maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.T


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """The filter along one axis as a matrix ``[side, side]``, so that any radius fits any side."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    places = torch.arange(side, device=like.device)[:, None] + offsets
    # Mirrored at the edge of the outermost pixels, over and over: -1 is 0, side is side - 1.
    wrapped = places.remainder(2 * side)
    mirrored = torch.where(wrapped >= side, 2 * side - 1 - wrapped, wrapped)
    matrix = torch.zeros(side, side, dtype=torch.double, device=like.device)
    return matrix.scatter_add(1, mirrored, (kernel / kernel.sum()).expand(side, -1)).to(like.dtype)
