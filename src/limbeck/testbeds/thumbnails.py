"""Thumbnails: Fashion-MNIST and CIFAR-10 at 16 x 16 pixels in [0, 1], for distilling data sets on one CPU thread.

Fashion-MNIST is padded to 32 x 32 as the literature does, then both are averaged over 2 x 2 pixels. Networks that learn
from thirty kilobytes of images tell good images from bad ones at this size too, at a tenth of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.condensation.evaluation import Training, train_fresh
from limbeck.condensation.experts import ExpertPool
from limbeck.condensation.selection import random_order, select
from limbeck.data.mixing import Chain, CutMix
from limbeck.data.siamese import SiameseAugment
from limbeck.data.split import Split, Splits
from limbeck.engine import OptimizerSettings
from limbeck.measure import auc, classification, features_of, logits_of
from limbeck.models.convnet import ConvNet
from limbeck.models.small import SmallCNN
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.cifar10 import CIFAR10
from limbeck.testbeds.fashion_mnist import FashionMNIST
from limbeck.testbeds.images import ImageTestbed, Pool
from limbeck.testbeds.recipe import kept_numbers, kept_tensors, seeded

SIDE = 16


@dataclass(frozen=True)
class Regime:
    """A data set and how long everything takes.

    Attributes:
        images: class of the testbed whose images these are.
        mean, deviation: of the training pixels, per channel; the ConvNet's first layer uses them.
        train, validation, test: numbers of images, drawn once.
        experts, expert_steps: the pool and the length of each training.
        steps: of the evaluation's trainings.
        lowest: accuracy that an expert must reach for an effect to show.
    """

    about: str
    images: type[ImageTestbed]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    lowest: float
    train: int = 20_000
    validation: int = 2_000
    test: int = 5_000
    experts: int = 5
    expert_steps: int = 620
    steps: int = 300


class Thumbnails(Testbed):
    """Small images for data-set distillation. The teacher is the mean of the experts' probabilities.

    Networks: ``convnet``, two blocks of 16 channels with instance norm, of which there is a pool of experts with both
    ends of their training; and ``cnn``, another architecture (BatchNorm, max pooling), which no distiller sees.
    """

    name = "thumbnails"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("Fashion-MNIST, ten classes of clothing, grey", FashionMNIST, (0.22,), (0.31,), 0.8),
        "cifar10": Regime(
            "CIFAR-10, ten classes of objects, in colour",
            CIFAR10,
            (0.49, 0.48, 0.45),
            (0.24, 0.23, 0.25),
            0.45,
            expert_steps=930,
        ),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        # Enough to have a beginning and an end.
        small = replace(plan, train=400, validation=100, test=200, experts=2, expert_steps=6, steps=6)
        self.plan = plan if size == "full" else small

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    @property
    def channels(self) -> int:
        """Colours of the images."""
        return len(self.plan.mean)

    def data_hashes(self) -> dict[str, str]:
        """Hash of the package of images."""
        name, digest = next(iter(self._origin.data_hashes().items()))
        return {name: digest}

    def splits(self, seed: int = 0) -> Splits:
        """The same for every seed; ids are numbers in the data set, test images after training images."""
        return self._splits

    @property
    def training(self) -> Training:
        """How every evaluation network is trained, whatever on: shifts by a pixel, CutMix, AdamW.

        The literature's full DSA needs thousands of steps: in hundreds these small networks learn less with it than
        without, on real images too.
        """
        return Training(
            steps=self.plan.steps,
            batch_size=32,
            optimizer=OptimizerSettings(lr=5e-3, weight_decay=1e-2, warmup=0.05),
            transform=Chain(SiameseAugment(("crop",), crop=1 / SIDE), CutMix(self.num_classes)),
        )

    def network(self, kind: str) -> nn.Module:
        """An untrained ``convnet`` or ``cnn``; its weights are drawn from the global generator."""
        if kind == "cnn":
            return SmallCNN((16, 32, 48), self.num_classes, self.channels, SIDE)
        mean, deviation = self.plan.mean, self.plan.deviation
        return ConvNet(self.num_classes, self.channels, SIDE, depth=2, width=16, mean=mean, deviation=deviation)

    def network_makers(self) -> dict[str, Callable[[], nn.Module]]:
        """Both kinds, as ``condensation.evaluate`` takes them."""
        return {"convnet": lambda: self.network("convnet"), "cnn": lambda: self.network("cnn")}

    def experts(self) -> ExpertPool:
        """The pool, trained once and kept."""

        def build() -> nn.Module:
            return self.network("convnet")

        def make() -> dict[str, Tensor]:
            training = replace(self.training, steps=self.plan.expert_steps, batch_size=64, transform=None)
            # Seeds that no recorded run meets: an evaluation network must not begin where an expert did.
            pool = ExpertPool.train(build, self.splits().train, training, count=self.plan.experts, seed=7_000)
            return pool.tensors()

        return ExpertPool.of(build, kept_tensors(f"experts-{self.name}-{self.regime}", self._content(), make))

    def teacher(self) -> nn.Module:
        """The mean of the trained experts' probabilities, as their logarithm."""
        pool = self.experts()
        members = []
        for number in range(len(pool)):
            member = self.network("convnet")
            member.load_state_dict(pool.trained(number).state_dict())
            members.append(member)
        return _Mean(members).requires_grad_(False).eval()

    def student(self, seed: int = 0) -> nn.Module:
        """A fresh ConvNet."""
        return seeded(lambda: self.network("convnet"), seed)

    def features(self, split: Split) -> Tensor:
        """What the head of the first trained expert sees of every image, for selectors ``[N, D]``."""
        network: Any = self.experts().trained(0)
        return features_of(network, split.batches(500), lambda _, batch: network.features(batch["input"]))

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Metrics of classification, and ``auc``."""
        logits = logits_of(model, split)
        return classification(logits, split.labels) | {"auc": auc(logits, split.labels)}

    def gate(self) -> Gate:
        """Experts know the data, are not perfect, and are far ahead of a network that saw ten images per class."""
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", self._content(), self._gate_figures)
        bounds = {"expert_accuracy": (self.plan.lowest, 0.99), "lead_over_ten_per_class": (0.05, 1.0)}
        if self.size == "smoke":
            bounds = {"expert_accuracy": (0.0, 1.0), "lead_over_ten_per_class": (-1.0, 1.0)}
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        train, held_out, pool = self.splits().train, self.splits().validation, self.experts()
        all_images = [self.evaluate(pool.trained(number), held_out)["accuracy"] for number in range(len(pool))]
        accuracy = sum(all_images) / len(all_images)
        few = train.subset(select(random_order, torch.zeros(len(train), 1), train.labels, per_class=10, seed=7_000))
        model = train_fresh(lambda: self.network("convnet"), few, self.training, seed=7_100)
        return {
            "expert_accuracy": accuracy,
            "lead_over_ten_per_class": accuracy - self.evaluate(model, held_out)["accuracy"],
        }

    @cached_property
    def _origin(self) -> ImageTestbed:
        return self.plan.images()

    @cached_property
    def _splits(self) -> Splits:
        plan, (training, test) = self.plan, self._origin.pools()
        order = torch.randperm(len(training.images), generator=torch.Generator().manual_seed(0))
        return Splits(
            train=_thumbnails(training, order[: plan.train]),
            validation=_thumbnails(training, order[-plan.validation :]),
            test=_thumbnails(test, torch.arange(plan.test), offset=len(training.images)),
        )

    def _content(self) -> dict[str, Any]:
        plan = {name: value for name, value in asdict(self.plan).items() if name != "images"}
        return {"data": self.data_hashes(), "plan": plan, "network": repr(self.student()), "version": 3}


class _Mean(nn.Module):
    """The logarithm of the mean of networks' probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        said = torch.stack([member(images).log_softmax(dim=-1) for member in self.members])
        return said.logsumexp(dim=0) - torch.tensor(float(len(self.members))).log()


def _thumbnails(pool: Pool, index: Tensor, offset: int = 0) -> Split:
    images = pool.images[index].float() / 255
    padding = (2 * SIDE - images.shape[-1]) // 2
    small = functional.avg_pool2d(functional.pad(images, (padding,) * 4), 2)
    return Split(small, pool.labels[index], index + offset)
