"""Experiments on generators of few steps: sample, judge, picture; and the arms that need no method.

Every arm of a seed is judged on samples from the same noises and classes.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from limbeck import losses, testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.pictures import contact_sheet
from limbeck.diffusion.samplers import DDIM, Heun
from limbeck.diffusion.score_distiller import ScoreDistiller
from limbeck.engine import Distiller, History, OptimizerSettings, fit
from limbeck.experiment.base import Claim, Experiment, Outcome
from limbeck.experiment.pictures import image, scatter
from limbeck.objectives.features import FeatureObjective
from limbeck.sources import Table
from limbeck.testbeds.images import tensor_hash
from limbeck.testbeds.recipe import kept_tensors

SOLVERS = {"ddim": DDIM, "heun": Heun}
T = TypeVar("T")
Sample = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TeacherSteps:
    """The teacher itself, guided, with a number of sampler steps."""

    steps: int
    scale: float
    solver: str = "ddim"


@dataclass(frozen=True)
class Untrained:
    """The generator before any training; ``start`` and so on are the experiment's."""

    steps: int = 1


@dataclass(frozen=True)
class Regression:
    """Squared error between a one-step generator's samples and the teacher's from the same noise.

    Attributes:
        pairs: (noise, class, sample) made once with ``teacher``. steps, lr: of the training.
    """

    teacher: TeacherSteps
    pairs: int
    steps: int
    lr: float = 1e-3


def claim(text: str, arm: str, over: str, metric: str, margin: float = 0.0, source: str = "sheet") -> Claim:
    """A comparison whose direction the metric decides."""
    return Claim(
        text, arm, over, metric, margin, "lower" if metric.endswith(("fid", "score_gap")) else "higher", source
    )


class GeneratorExperiment(Experiment):
    """Arms are :class:`TeacherSteps`, :class:`Untrained`, :class:`Regression`, or what :meth:`distiller` reads.

    The testbed needs ``trained``, ``conditions``, ``noise``, ``judge``, ``schedule`` and ``shape``.
    """

    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    samples: Mapping[str, int] = {"smoke": 40, "full": 400}
    steps: Mapping[str, int] = {"smoke": 5, "full": 400}
    batch_size: Mapping[str, int] = {"smoke": 4, "full": 16}
    shown: tuple[str, ...] = ()

    @abstractmethod
    def distiller(self, setting: Any, seed: int) -> ScoreDistiller:
        """The method of an arm, ready to be trained."""

    @abstractmethod
    def generator(self, steps: int = 1, **options: Any) -> Generator:
        """A fresh generator as the experiment's arms have it, from the trained network."""

    def loader(self, setting: Any, seed: int) -> TensorLoader:
        """Batches of conditions for :meth:`distiller`."""
        return self.bank.loader(self.batch_size[self.size], copies=2000 // len(self.bank), seed=seed)

    @property
    def logs(self) -> tuple[str, ...]:
        """Metrics whose logarithm is one too."""
        return (f"log_{self.metric}", "log_diversity")

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    @cached_property
    def bank(self) -> ConditionBank:
        """What stands for prompts."""
        bank: ConditionBank = self.bed.conditions()
        return bank

    @staticmethod
    def seeded(build: Callable[[], T], seed: int) -> T:
        """What ``build`` makes of random numbers of ``seed``; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    def network(self) -> Any:
        """A copy of the trained network, with weights that may learn."""
        return copy.deepcopy(self.bed.trained()).requires_grad_(True)

    def prepare(self) -> dict[str, Any]:
        """Gate; samples of the regression's teacher; the judge's view of real data."""
        for arm in self.arms.values():
            if isinstance(arm.setting, Regression):
                self.pairs(arm.setting)
        count, real = self.samples[self.size], self.bed.splits().validation
        points = torch.as_tensor(real.input)[:count]
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"real samples": self.bed.judge(points, real.labels[: len(points)])},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        """Train what is to be trained, then sample and judge."""
        setting = self.arms[arm].setting
        sample, curves = self.sampler(setting, seed)
        noise, labels = self.bed.noise(self.samples[self.size], 50_000 + seed)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # Generators of several steps draw noise on the way.
            torch.manual_seed(seed)
            parts = zip(noise.split(100), labels.split(100), strict=True)
            made = torch.cat([sample(*part) for part in parts])
        if not bool(torch.isfinite(made).all()):
            judged = dict.fromkeys(self.bed.judge(noise, labels), float("nan"))
            return Outcome({**judged, **dict.fromkeys(self.logs, float("nan"))}, curves)
        drawn = {"samples": self.picture(made, labels)} if seed == 0 and arm in self.shown else {}
        judged = self.bed.judge(made, labels)
        # Ratios are what counts; differences of logarithms are ratios.
        logs = {name: math.log(max(judged[name.removeprefix("log_")], 1e-6)) for name in self.logs}
        return Outcome({**judged, **logs}, curves, pictures=drawn)

    def sampler(self, setting: Any, seed: int) -> tuple[Sample, dict[str, list[float]]]:
        """``(noise, labels) -> samples``, trained if need be, and its curves over training."""
        if isinstance(setting, TeacherSteps):
            return lambda noise, labels: self.teacher_samples(setting, noise, labels), {}
        curves: dict[str, list[float]]
        if isinstance(setting, Untrained):
            generator, curves = self.generator(setting.steps), {}
        elif isinstance(setting, Regression):
            generator, curves = self._regressed(setting, seed)
        else:
            distiller = self.distiller(setting, seed)
            history = self.fit(distiller, self.loader(setting, seed), self.steps[self.size], seed)
            generator = distiller.finish()
            curves = {name: _thinned(history.curve(name)["y"]) for name in history.names() if name != "loss"}
        return lambda noise, labels: generator(noise, self.bank.rows(labels)), curves

    @staticmethod
    def fit(distiller: Any, loader: TensorLoader, steps: int, seed: int) -> History:
        """As all arms are trained."""
        return fit(distiller, loader, steps=steps, seed=seed, gradient_clip=1.0, log_every=5, accelerator="cpu")

    def teacher_samples(self, setting: TeacherSteps, noise: Tensor, labels: Tensor) -> Tensor:
        """Samples of the guided teacher; the first step starts at the schedule's last time."""
        grid = Grid.spaced(self.bed.schedule, setting.steps, spacing="trailing")
        guided = Guided(self.bed.teacher(), setting.scale, self.bank.null)
        samples: Tensor = SOLVERS[setting.solver](grid).sample(guided, noise, self.bank.rows(labels))
        return samples

    def pairs(self, setting: Regression) -> dict[str, Tensor]:
        """Noise, labels and the teacher's samples, made once; the file is named after all that makes them."""
        count = setting.pairs if self.size == "full" else 8
        noise, labels = self.bed.noise(count, 90_000)
        content = {
            "weights": tensor_hash(*self.bed.trained().state_dict().values()),
            "testbed": self.testbed,
            "setting": vars(setting.teacher),
            "noise": tensor_hash(noise, labels),
            "version": 1,
        }

        def make() -> dict[str, Tensor]:
            parts = zip(noise.split(100), labels.split(100), strict=True)
            made = torch.cat([self.teacher_samples(setting.teacher, *part) for part in parts])
            return {"noise": noise, "labels": labels, "samples": made}

        return kept_tensors(f"{self.bed.name}-pairs", content, make)

    def _regressed(self, setting: Regression, seed: int) -> tuple[Generator, dict[str, list[float]]]:
        found, ids = self.pairs(setting), torch.arange(len(self.pairs(setting)["noise"]))
        data = {"id": ids, "noise": found["noise"], "input": self.bank.rows(found["labels"])}
        loader = TensorLoader(data, self.batch_size[self.size], seed=seed, drop_last=True)
        distiller = Distiller(
            self.generator(),
            FeatureObjective(losses.denoising, name="mse", student="logits", teacher="logits", per_sample=True),
            Table(ids, {"logits": found["samples"]}),
            optimizer=OptimizerSettings("adam", lr=setting.lr, weight_decay=0.0),
            forward=lambda generator, batch: {"logits": generator(batch["noise"], batch["input"])},
        )
        steps = setting.steps if self.size == "full" else self.steps[self.size]
        history = self.fit(distiller, loader, steps, seed)
        generator: Any = distiller.finish()
        return generator, {"mse": _thinned(history.curve("mse")["y"])}

    def picture(self, made: Tensor, labels: Tensor) -> str:
        """Ten images, or the points in the plane."""
        if made.dim() == 4:
            return image(contact_sheet(made[:10], 10), enlarge=2)
        return self.plane(made, labels)

    def plane(self, made: Tensor, labels: Tensor) -> str:
        """A scatter of points by class."""
        groups = {f"class {k}": made[labels == k][:60].T.tolist() for k in range(self.bed.num_classes)}
        return scatter({name: (x, y) for name, (x, y) in groups.items()}, x_label="x", y_label="y")


def _thinned(values: list[float], most: int = 40) -> list[float]:
    """Means over equal parts, so that a curve of any length has at most ``most`` points."""
    size = max(1, -(-len(values) // most))
    return [
        sum(values[start : start + size]) / len(values[start : start + size]) for start in range(0, len(values), size)
    ]
