"""What the testbeds of anomaly detection share: good tiles, an ImageNet teacher, scores by image and by pixel.

Images are cut into tiles of 64 pixels, whose teacher features are computed once and kept. The tiles of an image follow
one another; its score is the largest value of its tiles' maps, or their mean where a testbed says so.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.augmentation import gaussian_blur
from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed
from limbeck.measure import anomaly
from limbeck.models import imagenet
from limbeck.models.patch_memory import PatchMemory
from limbeck.nn.anomaly_map import image_scores, upsample
from limbeck.nn.multi_tap import MultiTap
from limbeck.nn.reverse_decoder import ReverseStudent
from limbeck.testbeds.base import Check, Gate, Testbed
from limbeck.testbeds.images import tensor_hash
from limbeck.testbeds.recipe import kept_numbers, kept_tensors, seeded

TILE = 64
_PHOTOS = "scikit-image-photos"
# ImageNet's classes that the two photos may be taken for: domestic cats; espresso, cup and mug.
_LABELS = {"chelsea.png": (281, 282, 283, 284, 285), "coffee.png": (504, 967, 968)}


@dataclass(frozen=True)
class Surfaces:
    """Images of one kind of surface as tiles, uint8 ``[N, 3, 64, 64]``.

    Attributes:
        good: to learn from. test: to judge by. kind: int64 per test image, 0 for good ones. kinds: their names.
        masks: bool ``[N, 64, 64]`` of the test tiles, where they are known. tiles: per image.
        groups: name -> kinds that are judged together.
    """

    good: Tensor
    test: Tensor
    kind: Tensor
    kinds: tuple[str, ...]
    masks: Tensor | None = None
    tiles: int = 1
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def members(self) -> dict[str, Tensor]:
        """Name of a kind or group -> bool per image: good ones and those of the kind or group."""
        named = {kind: (kind,) for kind in self.kinds[1:]} | dict(self.groups)
        return {
            name: torch.isin(self.kind, torch.tensor([0, *(self.kinds.index(kind) for kind in kinds)]))
            for name, kinds in named.items()
        }


@dataclass(frozen=True)
class AnomalySplits(Splits):
    """Good tiles for training and validation; test tiles whose targets are kinds of defect, 0 for none.

    Inputs are normalised tiles, or a teacher's maps of them. ``surfaces`` says the rest: names, masks, tiles per image.
    ``blurred`` are the training and the validation part as the method's authors blur them.
    """

    blurred: tuple[Split, Split]
    surfaces: Surfaces


class AnomalyTestbed(Testbed):
    """A subclass says where surfaces come from. The teacher is MobileNetV2 trained on ImageNet, 224 pixels in mind."""

    validation_share: ClassVar[float] = 0.3
    # Of an image from its map: "max", as published, or "mean".
    score: str = "max"
    # Defects that no arm is judged by, for the gate.
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "photos_recognised": (1.0, 1.0),
        "nearest_neighbour_auroc": (0.6, 0.999),
    }

    @abstractmethod
    def surfaces(self, seed: int = 0) -> Surfaces:
        """What training and test of a seed are made from."""

    @abstractmethod
    def gate_surfaces(self) -> list[Surfaces]:
        """Other test images than any seed's, for the gate."""

    @property
    def num_classes(self) -> int:
        """Good or not."""
        return 2

    @property
    def sigma(self) -> float:
        """Of the map's Gaussian: the published 4 pixels of 256."""
        return 4 * TILE / 256

    def splits(self, seed: int = 0) -> AnomalySplits:
        """Normalised tiles. Which good images are held out for validation depends on ``seed``."""
        found = self.surfaces(seed)
        good, test = imagenet.FORMAT.normalize(found.good), imagenet.FORMAT.normalize(found.test)
        return self._split({"good": good, "blurred": gaussian_blur(good), "test": test}, found, seed)

    def features(self, seed: int = 0, teacher: MultiTap | None = None) -> AnomalySplits:
        """The same with a teacher's maps as inputs; of the testbed's own teacher they are made once and kept."""
        found = self.surfaces(seed)

        def make() -> dict[str, Tensor]:
            network = teacher or self.teacher()
            parts = {"good": run(network, found.good), "blurred": run(network, found.good, blur=True),
                     "test": run(network, found.test)}  # fmt: skip
            return {f"{part}.{name}": maps for part, made in parts.items() for name, maps in made.items()}

        content = {"data": self.data_hashes(), "tiles": tensor_hash(found.good, found.test), "taps": imagenet.TAPS}
        kept = make() if teacher is not None else kept_tensors(f"{self.name}-{self.regime}-maps", content, make)
        parts: dict[str, Any] = {
            part: {key.split(".")[1]: maps for key, maps in kept.items() if key.startswith(f"{part}.")}
            for part in ("good", "blurred", "test")
        }
        return self._split(parts, found, seed)

    def _split(self, parts: Mapping[str, Any], found: Surfaces, seed: int) -> AnomalySplits:
        total, tiles = len(found.good), found.tiles
        order = torch.randperm(total // tiles, generator=torch.Generator().manual_seed(epoch_seed(seed, 2)))
        held = round(self.validation_share * len(order))
        ids = torch.arange(total + len(found.test))
        learnt, kept = ((images[:, None] * tiles + torch.arange(tiles)).flatten()
                        for images in (order[held:], order[:held]))  # fmt: skip
        good, blurred = (Split(parts[name], torch.zeros(total, dtype=torch.int64), ids[:total])
                         for name in ("good", "blurred"))  # fmt: skip
        test = Split(parts["test"], found.kind.repeat_interleave(tiles), ids[total:])
        both = (blurred.subset(learnt), blurred.subset(kept))
        return AnomalySplits(good.subset(learnt), good.subset(kept), test, both, found)

    def teacher(self) -> MultiTap:
        """The published MobileNetV2 with its maps at 1/4 (twice), 1/8 and 1/16."""
        return MultiTap(imagenet.mobilenet_v2(), imagenet.TAPS, imagenet.POOLED)

    def random_teacher(self, seed: int = 0) -> MultiTap:
        """The same network with random weights; its BatchNorms have seen the good tiles, so that no map dies out."""
        network = seeded(imagenet.MobileNetV2, seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            network.train()(imagenet.FORMAT.normalize(self.surfaces(seed).good[:128]))
        return MultiTap(network, imagenet.TAPS, imagenet.POOLED)

    def student(self, seed: int = 0) -> nn.Module:
        """The full reverse student with fresh weights."""
        return seeded(lambda: ReverseStudent(self.shapes, signed=True), seed)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the teacher's maps of a tile."""
        return self.teacher().shapes(torch.zeros(1, 3, TILE, TILE))

    def measure(self, maps: Tensor, splits: AnomalySplits, calibration: Mapping[str, Tensor]) -> dict[str, float]:
        """How well anomaly maps ``[N, H, W]`` of the test tiles find what is wrong.

        Args:
            calibration: suffix of a metric -> maps of good validation tiles: 95% of their images lie below the
                threshold that ``false_alarms`` and ``recall`` are counted at.
        """
        found = splits.surfaces
        scores, bad = by_image(maps, found.tiles, self.score), found.kind > 0
        numbers = {"best_f1": anomaly.best_f1(scores, bad)[0]}
        # The maximum hides a defect of the whole image, which is nowhere above a good image's worst place.
        other = "mean" if self.score == "max" else "max"
        for suffix, values in (("", scores), (f"_by_{other}", by_image(maps, found.tiles, other))):
            numbers[f"auroc{suffix}"] = anomaly.auroc(values, bad)
            for name, chosen in found.members().items():
                numbers[f"auroc{suffix}_{name}"] = anomaly.auroc(values[chosen], bad[chosen])
        for name, values in calibration.items():
            rates = anomaly.alarm_rates(scores, bad, by_image(values, found.tiles, self.score))
            numbers |= {f"{rate}{name}": value for rate, value in rates.items()}
        if found.masks is not None:
            full = upsample(maps, (TILE, TILE))
            numbers["pixel_auroc"] = anomaly.auroc(full, found.masks)
            numbers["region_overlap"] = anomaly.region_overlap(full, found.masks)
            for name, chosen in found.members().items():
                numbers[f"pixel_auroc_{name}"] = anomaly.auroc(full[chosen], found.masks[chosen])
        return numbers

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Image AUROC of a network that gives maps ``[B, H, W]`` of normalised tiles."""
        with torch.no_grad():
            maps = torch.cat([model(batch["input"]) for batch in split.batches(64)])
        tiles = self.surfaces().tiles
        return {"auroc": anomaly.auroc(by_image(maps, tiles, self.score), split.labels[::tiles] > 0)}

    def gate(self) -> Gate:
        """The backbone recognises two photos, and nearest neighbours on its features see some defects but not all."""
        tiles = [tensor_hash(found.good, found.test) for found in self.gate_surfaces()]
        content = {"data": self.data_hashes(), "tiles": tiles, "score": self.score, "version": 1}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        bounds = dict(self.bounds) if self.size == "full" else {**self.bounds, "nearest_neighbour_auroc": (0.0, 1.0)}
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        teacher, areas = self.teacher(), []
        for found in self.gate_surfaces():
            memory = PatchMemory(("t2", "t3")).fit(run(teacher, found.good))
            scores = by_image(memory.predict(run(teacher, found.test)), found.tiles, self.score)
            areas.append(anomaly.auroc(scores, found.kind > 0))
        return {"photos_recognised": photos_recognised(), "nearest_neighbour_auroc": sum(areas) / len(areas)}


def by_image(maps: Tensor, tiles: int, score: str = "max") -> Tensor:
    """Scores of images from the maps of their tiles: the largest value, or the ``mean``."""
    if score == "mean":
        return maps.flatten(1).mean(1).view(-1, tiles).mean(1)
    return image_scores(maps).view(-1, tiles).amax(1)


@torch.no_grad()
def run(teacher: MultiTap, tiles: Tensor, *, blur: bool = False) -> dict[str, Tensor]:
    """A teacher's maps of uint8 tiles."""
    made: dict[str, list[Tensor]] = {}
    for part in tiles.split(64):
        images = imagenet.FORMAT.normalize(part)
        for name, maps in teacher(gaussian_blur(images) if blur else images).items():
            made.setdefault(name, []).append(maps)
    return {name: torch.cat(parts) for name, parts in made.items()}


@cache
def photos_recognised() -> float:
    """Share of two photos (a cat, a cup of espresso) that the backbone with its own preprocessing names rightly."""
    model, folder = imagenet.mobilenet_v2(), fetch(_PHOTOS)
    with torch.no_grad():
        named = model(imagenet.FORMAT([str(folder / name) for name in _LABELS])).argmax(1).tolist()
    return sum(label in right for label, right in zip(named, _LABELS.values(), strict=True)) / len(named)


def hashes(*names: str) -> dict[str, str]:
    """Of the artefacts that a testbed is made from, the backbone's and the photos' among them."""
    return {name: artefact(name).sha256 for name in (*names, imagenet.ARTEFACT, _PHOTOS)}
