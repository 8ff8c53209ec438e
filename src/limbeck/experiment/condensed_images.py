"""What experiments that distil images share: eight bits per pixel, real images as rivals, pictures of the sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.condensation.images import SyntheticImages, eight_bits, encode_tiles
from limbeck.condensation.packing import Tiles
from limbeck.condensation.selection import Order, herding_order, k_center_order, random_order, select
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.experiment import Arm
from limbeck.experiment.condensation import CondensationExperiment, Task
from limbeck.experiment.pictures import image

# Bytes of a soft label, per class: half precision.
_SOFT = 2
_PICTURED = 4


def everything(task: Task) -> Split:
    """All training images."""
    return task.train


def pixels(task: Task) -> Tensor:
    """The training images."""
    images = task.train.input
    if not isinstance(images, Tensor):
        raise TypeError("images are a tensor")
    return images


def affordable(task: Task, *, samples: int = 1, soft: bool = False) -> int:
    """Stored images per class within the budget, each with ``samples`` labels if they are soft, else with one."""
    classes = task.bed.num_classes
    label = samples * classes * _SOFT if soft else 1
    per_class: int = (task.budget - 1) // (classes * (pixels(task)[0].numel() + label))
    return per_class


def coreset(order: Order, task: Task) -> DistilledSet:
    """Whole real images, ranked in the features of a trained network."""
    labels = task.train.labels
    features = torch.zeros(len(labels), 1) if order is random_order else task.bed.features(task.train)
    rows = select(order, features, labels, per_class=affordable(task), seed=task.seed)
    return DistilledSet.of(Tiles(eight_bits(pixels(task)[rows])), labels[rows])


def real_soft(factor: int, task: Task) -> DistilledSet:
    """Random real images, ``factor^2`` in one, with the teacher's probabilities as labels: fewer, for the bytes."""
    samples, labels = factor**2, task.train.labels
    count = affordable(task, samples=samples, soft=True) * samples
    rows = select(random_order, torch.zeros(len(labels), 1), labels, per_class=count, seed=task.seed)
    return with_soft_labels(Tiles(eight_bits(encode_tiles(pixels(task)[rows], factor)), factor), task)


def with_soft_labels(tiles: Tiles, task: Task) -> DistilledSet:
    """Tiles with the probabilities that the testbed's teacher gives each decoded picture, in half precision."""
    pictures = DistilledSet.of(tiles, torch.zeros(len(tiles), dtype=torch.int64)).samples
    teacher = task.bed.teacher()
    with torch.inference_mode():
        said = teacher(pictures).softmax(dim=-1).half()
    return DistilledSet.of(tiles, said.clone())


def start(factor: int, task: Task) -> DistilledSet:
    """Real images shrunk into tiles: where the learned sets begin, with nothing learned."""
    return SyntheticImages.start("mix", task.train, affordable(task), factor=factor, seed=task.seed).distilled()


REAL_IMAGES = {
    "full": Arm(
        everything, "all training images, four times the steps, plain", "none", {"longer": 4, "augmented": False}
    ),
    "random": Arm(partial(coreset, random_order), "random real images, as many bytes", "rival"),
    "random-soft": Arm(partial(real_soft, 1), "random real images with soft labels, as many bytes", "rival"),
    "herding": Arm(partial(coreset, herding_order), "herding on a trained network's features", "rival"),
    "k-center": Arm(partial(coreset, k_center_order), "k-center on a trained network's features", "rival"),
    "tiled": Arm(partial(start, 2), "four shrunk real images in one: where sets of tiles start", "control"),
}


class ImageCondensation(CondensationExperiment):
    """Distilled images at ``per_class`` stored images of every class. ``metric`` is the accuracy of the architecture
    that the images are made with; the other one's stands beside it.

    A subclass states ``pictured``: arms whose images are shown, for seed 0.
    """

    metric = "accuracy_convnet"
    per_class = 10
    repeats: Mapping[str, int] = {"convnet": 2}
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    pictured: tuple[str, ...] = ()

    def budget(self, train: Split) -> int:
        """The bytes of ``per_class`` real images of every class with labels of one byte, and one for the factor."""
        per_class = self.per_class if self.size == "full" else min(self.per_class, 2)
        return int(per_class * self.bed.num_classes * (train.input[0].numel() + 1)) + 1  # type: ignore[union-attr,index]

    def prepare(self) -> dict[str, Any]:
        found = super().prepare()
        return found | {"reference": {"teacher": self.bed.evaluate(self.bed.teacher(), self.bed.splits().test)}}

    def pack(self, split: Split) -> DistilledSet:
        """Real images at eight bits per pixel and channel."""
        return DistilledSet.of(Tiles(eight_bits(split.input)), split.labels)  # type: ignore[arg-type]

    def draw(self, arm: str, made: DistilledSet, task: Task) -> dict[str, str]:
        if arm not in self.pictured or task.seed != 0:
            return {}
        return {f"{arm}: stored images, a column per class": draw_tiles(made, task.bed.num_classes)}


def draw_tiles(made: DistilledSet, classes: int, rows: int = _PICTURED) -> str:
    """The first stored images of every class, side by side, in 32 shades, so that a page can hold several sets."""
    stored = made.tensors["pixels"]
    shown = stored.unflatten(0, (classes, -1))[:, :rows]
    grid = shown.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    coarse = (grid // 8 * 8 + 4).astype(np.uint8)
    return image(np.ascontiguousarray(coarse[..., 0] if coarse.shape[-1] == 1 else coarse), enlarge=3)
