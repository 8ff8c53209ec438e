"""What the method is compared with, on one contract: ``fit`` on good tiles, ``maps`` of a part of the data.

* :class:`Reverse`: the method and its ablations, on the teacher's maps;
* :class:`Forward`: a small network learns the teacher's maps from the image (as STFPM does with its teacher's own
kind); * :class:`Pixels`: an autoencoder of the image, without a teacher;
* :class:`Neighbours`: nearest neighbours on the teacher's maps, without training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.data.split import Split
from limbeck.engine import Distiller, History, OneClassRecipe, fit_good
from limbeck.models.patch_memory import PatchMemory
from limbeck.nn.anomaly_map import AnomalyMap, smooth, upsample
from limbeck.nn.reverse_decoder import TapEncoder, conv_relu_norm
from limbeck.objectives import LevelCosine, TargetMSE
from limbeck.sources import Table
from limbeck.testbeds.anomaly import TILE, AnomalySplits, AnomalyTestbed
from limbeck.testbeds.recipe import seeded

from .method import FabricRD

SIZE = (TILE, TILE)
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Material:
    """The same samples twice: as tiles, and as the teacher's maps."""

    tiles: AnomalySplits
    maps: AnomalySplits
    bed: AnomalyTestbed

    def images(self, part: str) -> Split:
        """Normalised tiles; each is its own target."""
        split: Split = getattr(self.tiles, part)
        images = torch.as_tensor(split.input)
        return Split(images, images, split.id)


class Detector(Protocol):
    """An arm."""

    def fit(self, material: Material, recipe: OneClassRecipe, seed: int) -> History | None:
        """Learn from the good tiles."""

    def maps(self, material: Material, part: str) -> Tensor:
        """Anomaly maps of a part of the data."""


class Reverse:
    """:class:`FabricRD` with options; ``blur`` learns from blurred tiles, as published."""

    def __init__(self, *, blur: bool = False, **options: Any) -> None:
        self.blur, self.options = blur, options

    def fit(self, material: Material, recipe: OneClassRecipe, seed: int) -> History | None:
        self.model = FabricRD(size=SIZE, sigma=material.bed.sigma, recipe=recipe, seed=seed, **self.options)
        splits = material.maps
        train, held = splits.blurred if self.blur else (splits.train, splits.validation)
        return self.model.fit_features(train, held, splits.validation).history_

    def maps(self, material: Material, part: str) -> Tensor:
        return self.model.predict_features(getattr(material.maps, part))


class Forward:
    """The image's own network learns the teacher's maps; same loss, same map, about as many weights."""

    def fit(self, material: Material, recipe: OneClassRecipe, seed: int) -> History | None:
        bed, splits = material.bed, material.maps
        student = seeded(lambda: TapEncoder(bed.shapes, SIZE, signed=True), seed)
        ids = torch.cat([splits.train.id, splits.validation.id])
        both: Any = (splits.train.input, splits.validation.input)
        table = Table(ids, {name: torch.cat([part[name] for part in both]) for name in bed.shapes})
        distiller = Distiller(student, LevelCosine(bed.shapes), table, optimizer=recipe.optimizer)
        history = fit_good(distiller, material.images("train"), material.images("validation"), recipe, seed=seed)
        self.student = distiller.finish()
        return history

    @torch.no_grad()
    def maps(self, material: Material, part: str) -> Tensor:
        score = AnomalyMap(SIZE, sigma=material.bed.sigma)
        pairs = zip(material.images(part).batches(64), getattr(material.maps, part).batches(64), strict=True)
        return torch.cat([score(self.student(seen["input"]), taught["input"]) for seen, taught in pairs])


class Pixels:
    """Convolutions down to 4 x 4 positions of 64 numbers and up again; the map is the squared error of the pixels."""

    def fit(self, material: Material, recipe: OneClassRecipe, seed: int) -> History | None:
        network = seeded(_autoencoder, seed)
        recipe = replace(recipe, lr=2e-3)
        distiller = Distiller(network, TargetMSE(), optimizer=recipe.optimizer)
        train, held = material.images("train"), material.images("validation")
        history = fit_good(distiller, train, held, recipe, seed=seed, summed=False)
        self.network = distiller.finish()
        return history

    @torch.no_grad()
    def maps(self, material: Material, part: str) -> Tensor:
        batches = material.images(part).batches(64)
        errors = [(self.network(batch["input"]) - batch["input"]).square().mean(1) for batch in batches]
        return smooth(torch.cat(errors), material.bed.sigma)


class Neighbours:
    """:class:`~limbeck.models.patch_memory.PatchMemory` on the two deepest maps, smoothed as all maps are."""

    def fit(self, material: Material, recipe: OneClassRecipe, seed: int) -> History | None:
        train: Any = material.maps.train.input
        self.memory = PatchMemory(("t2", "t3"), seed=seed).fit(train)
        return None

    def maps(self, material: Material, part: str) -> Tensor:
        found = self.memory.predict(getattr(material.maps, part).input)
        return smooth(upsample(found, SIZE), material.bed.sigma)


def _autoencoder() -> nn.Module:
    widths = (3, 16, 32, 64, 64)
    down = [conv_relu_norm(a, b, 3, stride=2) for a, b in pairwise(widths)]
    up: list[nn.Module] = []
    for a, b in zip(widths[:1:-1], widths[-2:0:-1]):
        up += [nn.ConvTranspose2d(a, b, 2, 2), nn.ReLU(), nn.BatchNorm2d(b)]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(widths[1], 3, 2, 2))
