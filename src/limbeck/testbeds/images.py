"""What the image testbeds share: regimes, pools of disjoint images, trained teachers, gates."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.recipe import Recipe, kept_numbers, kept_weights, seeded, train


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        student, teacher: names of networks of the testbed.
        train: images with labels for the student.
        recipe: the student's reference training (also of the gate's student without a teacher).
        teacher_train: images for the teacher, none of them the student's; 0 if both see the same images.
        teacher_recipe: how the teacher is trained.
        validation, test: held-out training images and test images, ``test=0`` for all of them.
        smoke_train: ``train`` of the size ``smoke``.
        drawn: the student's images are drawn by seed although the teacher has a claim on all.
        bounds: of the gate, ``{check: (low, high)}``, on top of the general ones.
    """

    about: str
    student: str
    teacher: str
    train: int
    recipe: Recipe
    teacher_recipe: Recipe
    teacher_train: int = 0
    validation: int = 2000
    test: int = 0
    smoke_train: int = 256
    drawn: bool = False
    bounds: Mapping[str, tuple[float, float]] | None = None

    @property
    def shared(self) -> bool:
        """Whether teacher and student see the same images."""
        return self.teacher_train == 0


@dataclass(frozen=True)
class Pool:
    """All images of a data set: ``images`` of any dtype, ``labels`` int64."""

    images: Tensor
    labels: Tensor


class ImageTestbed(Testbed):
    """An image classification testbed: a subclass says where images come from and which networks there are.

    The training images are put in one fixed order. Its end is for validation, its beginning for the teacher;
    the student's images are drawn by seed from the rest, or are the teacher's own in a shared regime.
    """

    regimes: ClassVar[Mapping[str, Regime]]
    gate_split: ClassVar[str] = "validation"

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan = chosen if size == "full" else self.smoke(chosen)

    @abstractmethod
    def pools(self) -> tuple[Pool, Pool]:
        """All training and all test images."""

    @abstractmethod
    def network(self, name: str) -> nn.Module:
        """An untrained network of the testbed by its name in a regime."""

    def smoke(self, regime: Regime) -> Regime:
        """The same regime, small enough for a test of seconds."""
        return replace(
            regime,
            train=min(regime.train, regime.smoke_train),
            teacher_train=min(regime.teacher_train, 1500),
            validation=min(regime.validation, 400),
            test=400,
            recipe=replace(regime.recipe, batch_size=min(regime.recipe.batch_size, 32)),
            teacher_recipe=replace(
                regime.teacher_recipe,
                batch_size=32,
                epochs=min(regime.teacher_recipe.epochs, 10 if regime.teacher_train else 25),
            ),
        )

    def prepare(self, images: Tensor, ids: Tensor) -> Tensor:
        """Images as the networks take them: float, scaled. ``ids`` are their stable numbers."""
        return images.float() / 255

    def label(self, labels: Tensor, ids: Tensor) -> Tensor:
        """Targets of images; the data set's own labels, unless the regime makes others."""
        return labels

    def splits(self, seed: int = 0) -> Splits:
        """See :class:`Testbed`; ids are numbers in the data set, test images after training images."""
        offset = len(self._pools[0].images)
        test = torch.arange(len(self._pools[1].images))[: self.plan.test or None]
        return Splits(
            train=self._samples(self._student_index(seed)),
            validation=self._samples(self._order[-self.plan.validation :]),
            test=self._samples(test + offset),
        )

    def teacher_samples(self) -> Split:
        """The images that the teacher is trained on."""
        return self._samples(self._order[: self.plan.teacher_train or self.plan.train])

    def teacher(self) -> nn.Module:
        """See :class:`Testbed`; the file is named after the hash of network, recipe and data."""
        plan = self.plan
        fresh = self.teacher_network(plan.teacher_recipe.seed)
        samples = self.teacher_samples()
        content = {
            "network": repr(fresh),
            "recipe": asdict(plan.teacher_recipe),
            "data": self.data_hashes(),
            "samples": tensor_hash(samples.id, samples.labels),
            "regime": self.regime,
        }
        return kept_weights(
            f"{self.name}-{plan.teacher}",
            content,
            build=lambda: self.teacher_network(plan.teacher_recipe.seed),
            make=lambda model: train(model, samples, plan.teacher_recipe),
        )

    def teacher_network(self, seed: int = 0) -> nn.Module:
        """The teacher's architecture, untrained: for systems in which both networks learn together."""
        return seeded(lambda: self.network(self.plan.teacher), seed)

    def student(self, seed: int = 0) -> nn.Module:
        """See :class:`Testbed`."""
        return seeded(lambda: self.network(self.plan.student), seed)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Accuracy, top-5 accuracy, NLL, ECE and Brier score of ``model`` on ``split``."""
        from limbeck.measure import classification, logits_of

        return classification(logits_of(model, split, 500), split.labels)

    def alone(self, seed: int = 0) -> nn.Module:
        """The student trained by the reference recipe without a teacher."""
        model = self.student(seed)
        return train(model, self.splits(seed).train, replace(self.plan.recipe, seed=seed))

    def gate(self) -> Gate:
        """The teacher is neither at chance nor perfect, the student without a teacher clearly below it."""
        plan = asdict(self.plan)
        content = {
            "plan": plan,
            "data": self.data_hashes(),
            "network": repr(self.student()),
            "regime": self.regime,
        }
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        chance = 1 / self.num_classes
        bounds = {
            "teacher_accuracy": (3 * chance, 0.999),
            "student_accuracy": (1.5 * chance, 0.99),
            "teacher_lead": (0.01, 1.0),
            **(self.plan.bounds or {}),
        }
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        split: Split = getattr(self.splits(), self.gate_split)
        teacher, student = self.evaluate(self.teacher(), split), self.evaluate(self.alone(), split)
        figures = {f"teacher_{name}": value for name, value in teacher.items()}
        figures |= {f"student_{name}": value for name, value in student.items()}
        return {**figures, "teacher_lead": teacher["accuracy"] - student["accuracy"]}

    @cached_property
    def _pools(self) -> tuple[Pool, Pool]:
        return self.pools()

    @cached_property
    def _order(self) -> Tensor:
        count = len(self._pools[0].images)
        return torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed(0, 0)))

    def _student_index(self, seed: int) -> Tensor:
        plan = self.plan
        if plan.shared and not plan.drawn:
            return self._order[: plan.train]
        free = self._order[plan.teacher_train : len(self._order) - plan.validation]
        drawn = torch.randperm(len(free), generator=torch.Generator().manual_seed(epoch_seed(seed, 1)))
        return free[drawn[: plan.train]]

    def _samples(self, ids: Tensor) -> Split:
        training, test = self._pools
        offset = len(training.images)
        pool, index = (test, ids - offset) if len(ids) and int(ids.min()) >= offset else (training, ids)
        return Split(self.prepare(pool.images[index], ids), self.label(pool.labels[index], ids), ids)


def tensor_hash(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes, shapes and types."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
