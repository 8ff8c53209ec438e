"""Eight Gaussians in the plane, four classes of two: a world whose scores are known exactly.

Generated data, since no registry holds a distribution with its density. The teacher is a formula, so a method's fixed
point can be measured and not only looked at.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.split import Split, Splits
from limbeck.data.store import content_hash
from limbeck.diffusion.analytic import MixtureDenoiser, score_gap
from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.measure import generation
from limbeck.nn.transfer import WeightTransfer, shadow_of
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.recipe import frozen, kept_weights, seeded, warm_cosine

COMPONENTS, CLASSES = 8, 4
#: Where scores are compared; below, the noised samples are single dots.
TIMES = (100, 250, 400, 600, 800)


@dataclass(frozen=True)
class Regime:
    """The mixture, and how a network learns to denoise it.

    Attributes:
        radius, deviation: of the ring of components; class k has components k and k + 4, opposite each other.
        width, depth, steps, batch_size, learning_rate: of the network that students start from.
    """

    radius: float = 1.2
    deviation: float = 0.12
    width: int = 128
    depth: int = 3
    steps: int = 4000
    batch_size: int = 512
    learning_rate: float = 2e-3


class GaussianMixture(Testbed):
    """See the module. ``teacher()`` is the exact :class:`~limbeck.diffusion.analytic.MixtureDenoiser` (eps)."""

    name = "gaussian_mixture"
    regimes = {"plain": Regime()}

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan = chosen if size == "full" else replace(chosen, width=32, steps=150, batch_size=128)
        self.schedule = DiscreteSchedule.scaled_linear()

    @property
    def num_classes(self) -> int:
        """Four; the number itself is the null condition."""
        return CLASSES

    @property
    def null(self) -> int:
        """The null condition."""
        return CLASSES

    @property
    def shape(self) -> tuple[int]:
        """Of one point."""
        return (2,)

    def data_hashes(self) -> dict[str, str]:
        """Hash of the mixture's numbers: nothing is fetched."""
        return {"gaussian mixture": content_hash({"radius": self.plan.radius, "deviation": self.plan.deviation})}

    def exact(self) -> MixtureDenoiser:
        """The teacher."""
        turns = 2 * math.pi * torch.arange(COMPONENTS) / COMPONENTS
        means = self.plan.radius * torch.stack([turns.cos(), turns.sin()], dim=1)
        return MixtureDenoiser(self.schedule, means, self.plan.deviation, classes=torch.arange(COMPONENTS) % CLASSES)

    def teacher(self) -> Any:
        """The teacher: a formula, not a network."""
        return self.exact()

    def splits(self, seed: int = 0) -> Splits:
        """True samples with their classes."""
        return Splits(*(self._drawn(place, 2000) for place in range(3)))

    def student(self, seed: int = 0) -> MLPDenoiser:
        """A denoiser with fresh weights."""
        return seeded(lambda: MLPDenoiser(2, self.plan.width, self.plan.depth, classes=CLASSES), seed)

    def trained(self) -> MLPDenoiser:
        """A denoiser trained on samples of the mixture: what generators and fake scores start from."""
        return kept_weights(
            f"{self.name}-mlp",
            {"plan": asdict(self.plan), "version": 1},
            build=lambda: self.student(0),
            make=self._train,
        )

    def conditions(self) -> ConditionBank:
        """Class numbers."""
        return ConditionBank(torch.arange(CLASSES), torch.tensor(self.null))

    def noise(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """``count`` initial noises and classes, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 2, generator=generator), torch.arange(count) % CLASSES

    def judge(self, samples: Tensor, labels: Tensor) -> dict[str, float]:
        """How good generated points are.

        ``score_gap``: distance of their noised score from the teacher's, given the class, the mean over classes (see
        :func:`~limbeck.diffusion.analytic.score_gap`); ``conditional_accuracy``: share nearest to a component of their
        class; ``precision``, ``recall`` (3 neighbours, in the plane); ``coverage``: share of the components that got at
        least a quarter of their points; ``diversity``: mean distance within a class over that of true samples;
        ``spread``: mean distance to the nearest component's centre over that of true samples.
        """
        exact, real = self.exact(), self.splits().test
        truth = torch.as_tensor(real.input)[: len(samples)]
        gaps = [score_gap(samples[labels == k], exact, TIMES, torch.tensor(k)) for k in range(CLASSES)]
        distance, nearest = torch.cdist(samples, exact.means).min(1)
        right = exact.classes[nearest] == labels
        counts = torch.bincount(nearest[right], minlength=COMPONENTS)
        true_distance = torch.cdist(truth, exact.means).min(1).values
        return {
            "score_gap": sum(gaps) / CLASSES,
            "conditional_accuracy": float(right.float().mean()),
            **generation.precision_recall(samples, truth),
            "coverage": float((counts >= len(samples) / COMPONENTS / 4).float().mean()),
            "diversity": generation.within_class_distance(samples, labels)
            / generation.within_class_distance(truth, real.labels[: len(samples)]),
            "spread": float(distance.mean() / true_distance.mean()),
        }

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``loss``: mean squared distance of a network's eps from the exact one, at times spread evenly."""
        x0, labels = torch.as_tensor(split.input), split.labels
        generator = torch.Generator().manual_seed(0)
        t = torch.linspace(0, len(self.schedule) - 1, len(x0)).round().long()
        x = self.schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
        with torch.no_grad():
            return {"loss": float((model(x, t, labels) - self.exact()(x, t, labels)).square().mean())}

    def gate(self) -> Gate:
        """True samples have almost no score gap; the trained network's eps is near the exact one."""
        true = self._drawn(5, 2000)
        judged = self.judge(torch.as_tensor(true.input), true.labels)
        loss = self.evaluate(self.trained(), self.splits().validation)["loss"]
        return Gate(
            (
                Check("score_gap of true samples", judged["score_gap"], 0.0, 0.02),
                Check("loss of the trained network", loss, 0.0, 0.02 if self.size == "full" else 1.0),
            )
        )

    def _drawn(self, seed: int, count: int) -> Split:
        labels = torch.arange(count) % CLASSES
        points = self.exact().sample(count, torch.Generator().manual_seed(1000 + seed), labels)
        return Split(points, labels, torch.arange(count) + seed * count)

    def _train(self, model: nn.Module) -> nn.Module:
        exact, plan, generator = self.exact(), self.plan, torch.Generator().manual_seed(0)
        average = shadow_of(model)
        follow = WeightTransfer(model, average, momentum=0.99)
        optimiser = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=0.0)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / plan.steps))
        for _ in range(plan.steps):
            labels = torch.randint(CLASSES, (plan.batch_size,), generator=generator)
            x0 = exact.sample(len(labels), generator, labels)
            given = torch.where(torch.rand(len(labels), generator=generator) < 0.1, self.null, labels)
            t = torch.randint(len(self.schedule), (len(labels),), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            loss = (model(self.schedule.add_noise(x0, noise, t), t, given) - noise).square().mean()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            rate.step()
            follow()
        return frozen(average)
