"""How the arms of the experiment make their networks: each a function from a task to what came out of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Splits
from limbeck.engine import Distiller, fit
from limbeck.experiment.line_plots import lines
from limbeck.measure import logits_of
from limbeck.objectives import CrossEntropy
from limbeck.quantization import LearnedPoints, PackedNetwork, Scaling, first_and_last, uniform_points
from limbeck.sources import Table

from .method import (
    after_training,
    differentiable_quantization,
    distillation_loss,
    mixed,
    packed,
    quantized_distillation,
)

if TYPE_CHECKING:
    from .experiment import Compact

DRAWN_TENSOR = "cnn.stages.2.conv.weight"


@dataclass(frozen=True)
class Made:
    """What an arm gives: the network as it would be used, and the file it came out of, if it was quantised."""

    network: nn.Module
    file: PackedNetwork | None
    curves: dict[str, list[float]]
    pictures: dict[str, str]


class Task:
    """One arm's surroundings: what it may train on, and how it trains."""

    def __init__(self, experiment: Compact, seed: int, splits: Splits) -> None:
        self.experiment, self.seed, self.splits = experiment, seed, splits
        self.curves: dict[str, list[float]] = {}
        self.pictures: dict[str, str] = {}
        self.epochs, batch_size, self.optimizer = experiment.recipe({})
        self.batch_size = min(batch_size, len(splits.train))
        self.point_epochs = min(experiment.point_epochs, self.epochs)

    def student(self) -> nn.Module:
        """A fresh one."""
        return self.experiment.bed.student(self.seed)

    def teacher(self) -> Table:
        """The teacher's answers on the training images and their mirror images."""
        return self.experiment.teacher_table("trained", self.seed, self.splits.train)

    def loader(self, epoch: int = 0) -> TensorLoader:
        """Batches of the training images."""
        return TensorLoader(self.splits.train, self.batch_size, seed=self.seed + 1000 * epoch)

    def fit(self, distiller: Distiller, epochs: int | None = None) -> Distiller:
        """Train, and keep the learning curve: accuracy of what the forward passes see, so of the quantised net."""
        chosen = epochs or self.epochs
        validate = self.experiment.validator(self.splits.validation, chosen)
        history = fit(distiller, self.loader(), epochs=chosen, seed=self.seed, validate=validate, accelerator="cpu")
        self.curves["validation_accuracy"] = history.curve("validation/accuracy")["y"]
        return distiller

    def finished(self) -> nn.Module:
        """A copy of the distilled student in full precision, which the arms that come after training begin with."""
        return copy.deepcopy(self.experiment.distilled(self))

    def file(self, file: PackedNetwork) -> Made:
        """The network that the file holds."""
        return Made(file.write(self.student()), file, self.curves, self.pictures)


def full(distilled: bool) -> Callable[[Task], Made]:
    """Full precision, with or without the teacher."""

    def make(task: Task) -> Made:
        if distilled:
            return Made(task.finished(), None, task.curves, {})
        distiller = task.fit(Distiller(task.student(), CrossEntropy(), optimizer=task.optimizer))
        return Made(distiller.finish(), None, task.curves, {})

    return make


def posthoc(
    bits: int, bucket_size: int | None = 256, *, points: str = "uniform", norm: bool = False
) -> Callable[[Task], Made]:
    """Quantise the distilled student after training; ``norm``: then collect BatchNorm statistics anew."""

    def make(task: Task) -> Made:
        network = task.finished()
        view = LearnedPoints(network, bits, start=points, scaling=Scaling(bucket_size=bucket_size))
        file = PackedNetwork.of(network, view) if points == "quantiles" else after_training(network, bits, bucket_size)
        return task.file(recollected(file, task) if norm else file)

    return make


def recollected(file: PackedNetwork, task: Task) -> PackedNetwork:
    """The same codes with BatchNorm statistics of the quantised weights, from the training images."""
    network = file.write(task.student())
    with torch.no_grad():
        update_bn((batch["input"] for batch in task.loader()), network)
    statistics = {name: value for name, value in network.state_dict().items() if name in file.others}
    return replace(file, others={**file.others, **statistics})


def qd(
    bits: int,
    *,
    taught: bool = True,
    edges: bool = False,
    gradient: str = "straight_through",
    per_row: str = "sum",
    ask: str = "always",
) -> Callable[[Task], Made]:
    """Quantized distillation; ``taught=False``: quantisation-aware training on the labels alone.

    ``edges`` keeps the first and the last parameter in full precision.
    """

    def make(task: Task) -> Made:
        student = task.student()
        distiller = quantized_distillation(
            student,
            task.teacher() if taught else None,
            bits,
            objective=distillation_loss(per_row=per_row, ask=ask) if taught else CrossEntropy(),
            gradient=gradient,
            skip=first_and_last(student) if edges else (),
            optimizer=task.optimizer,
        )
        return task.file(packed(task.fit(distiller)))

    return make


def dq(bits: int, *, start: str = "quantiles", allocated: bool = True) -> Callable[[Task], Made]:
    """Differentiable quantization of the distilled student, which is its own teacher."""

    def make(task: Task) -> Made:
        network = task.finished()
        answers = Table(task.splits.train.id, {"logits": logits_of(network, task.splits.train)})
        distiller = differentiable_quantization(
            network,
            bits,
            batches=task.loader() if allocated else None,
            teacher=answers,
            start=start,
            optimizer=task.experiment.point_optimizer,
        )
        file = packed(task.fit(distiller, task.point_epochs))
        if task.seed == 0:
            task.pictures["Scaled weights of the third convolution and the points that it learned"] = drawn(file)
        return task.file(file)

    return make


def qd_and_dq(bits: int, *, annealed: bool = False, taught_points: bool = False) -> Callable[[Task], Made]:
    """The mixed mode."""

    def make(task: Task) -> Made:
        distiller = mixed(
            task.student(),
            task.teacher(),
            task.loader,
            bits,
            epochs=task.epochs,
            optimizer=task.optimizer,
            point_optimizer=task.experiment.point_optimizer,
            seed=1000 * task.seed,
            annealed=annealed,
            taught_points=taught_points,
            accelerator="cpu",
        )
        return task.file(packed(distiller))

    return make


def the_teacher(task: Task) -> Made:
    """The teacher itself."""
    return Made(task.experiment.teacher, None, {}, {})


def drawn(file: PackedNetwork) -> str:
    """Where one tensor's points are and how many of its weights take each, beside uniform points."""
    coded = file.coded[DRAWN_TENSOR]
    count = len(coded.points)
    shares = torch.bincount(coded.codes, minlength=count) / len(coded.codes)
    equal = uniform_points(count, coded.scaling)
    return lines(
        {"learned points": (coded.points.tolist(), shares.tolist())},
        points={"uniform points": (equal.tolist(), [0.0] * count)},
        x_label="scaled weight",
        y_label="share of the weights",
    )
