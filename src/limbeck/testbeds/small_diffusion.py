"""A small diffusion model on Fashion-MNIST at 16 x 16: ten conditions, guidance, samples that can be judged.

The teacher predicts eps on Stable Diffusion's schedule and is trained once, with an average of its weights. Samples
are judged in the features of a classifier that is trained on the real training images and never sees the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.split import Split, Splits
from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.samplers import DDIM
from limbeck.diffusion.unet import SmallUNet
from limbeck.measure import generation
from limbeck.models.small import SmallCNN
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.denoising import DiffusionRecipe, denoising_loss, train_denoiser
from limbeck.testbeds.fashion_mnist import FashionMNIST
from limbeck.testbeds.images import Pool
from limbeck.testbeds.recipe import Recipe, kept_numbers, kept_weights, seeded, train

PIXELS, CLASSES = 16, 10


@dataclass(frozen=True)
class Regime:
    """A denoiser and what it is trained on.

    Attributes:
        about: one line.
        width, multipliers: of the :class:`~limbeck.diffusion.unet.SmallUNet`.
        train: images for denoiser and classifier; 0 for all but the validation images.
        recipe: of the denoiser. classifier: of the judge.
        guidance: scale at which the gate samples and experiments usually do.
        gate_samples: images of the gate. bounds: ``{check: (low, high)}``.
    """

    about: str
    width: int
    multipliers: tuple[int, ...]
    recipe: DiffusionRecipe
    classifier: Recipe
    bounds: Mapping[str, tuple[float, float]]
    train: int = 0
    validation: int = 5000
    test: int = 0
    guidance: float = 2.0
    gate_samples: int = 1000


class SmallDiffusion(Testbed):
    """See the module. ``teacher()`` is a :class:`~limbeck.diffusion.unet.SmallUNet`, its conditions are class numbers.

    Images are ``[N, 1, 16, 16]`` in [-1, 1]: Fashion-MNIST padded to 32 x 32 and averaged over 2 x 2 pixels.
    """

    name = "small_diffusion"
    regimes = {
        "plain": Regime(
            "eps-prediction on 55,000 images",
            width=16,
            multipliers=(1, 2, 4),
            recipe=DiffusionRecipe(steps=6000),
            classifier=Recipe(epochs=6),
            bounds={
                # Chance is 0.1; the classifier itself is right on about nine in ten real images.
                "conditional_accuracy": (0.6, 0.995),
                # Of real images against real images it is near 0, of blurred or noisy ones several times higher.
                "fid_share": (0.0, 0.5),
                "classifier_accuracy": (0.8, 0.98),
            },
        ),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan: Regime = chosen if size == "full" else self.smoke(chosen)
        self.schedule = DiscreteSchedule.scaled_linear()

    @staticmethod
    def smoke(regime: Regime) -> Regime:
        """The same regime in seconds: a narrow network on a tenth of the images, hardly trained."""
        return replace(
            regime,
            width=8,
            multipliers=(1, 2, 2),
            train=6000,
            validation=1000,
            test=1000,
            recipe=replace(regime.recipe, steps=100, batch_size=32, momentum=0.98),
            classifier=replace(regime.classifier, epochs=2),
            gate_samples=50,
            bounds={"conditional_accuracy": (0.0, 1.0), "classifier_accuracy": (0.5, 0.98)},
        )

    @property
    def num_classes(self) -> int:
        """Ten; the number itself is the null condition."""
        return CLASSES

    @property
    def null(self) -> int:
        """The null condition."""
        return CLASSES

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (1, PIXELS, PIXELS)

    def data_hashes(self) -> dict[str, str]:
        """Hash of the Debian package."""
        return FashionMNIST().data_hashes()

    def splits(self, seed: int = 0) -> Splits:
        """Training, validation (the last training images in a fixed order) and test images, whatever the seed."""
        training, test = self._pools
        order = torch.randperm(len(training.images), generator=torch.Generator().manual_seed(0))
        kept = order[: len(order) - self.plan.validation]
        shown = torch.arange(len(test.images))[: self.plan.test or None]
        return Splits(
            train=_split(training, kept[: self.plan.train or None]),
            validation=_split(training, order[-self.plan.validation :]),
            test=_split(test, shown, len(training.images)),
        )

    def teacher(self) -> SmallUNet:
        """The trained denoiser; the file is named after network, recipe and data."""
        content = self._content(self.student(), asdict(self.plan.recipe))
        return kept_weights(
            f"{self.name}-unet",
            content,
            build=lambda: self.student(self.plan.recipe.seed),
            make=lambda model: train_denoiser(
                model, self.splits().train, self.schedule, self.plan.recipe, null=CLASSES
            ),
        )

    def student(self, seed: int = 0) -> SmallUNet:
        """The same network with fresh weights."""
        plan = self.plan
        return seeded(lambda: SmallUNet(plan.width, plan.multipliers, classes=CLASSES), seed)

    def trained(self) -> SmallUNet:
        """The network that generators and fake scores start from: a copy of the teacher."""
        return self.teacher()

    def conditions(self) -> ConditionBank:
        """The teacher's own class embeddings, in place of a text encoder's, and the null class's."""
        return ConditionBank.of_table(self.teacher().condition.weight)

    def classifier(self) -> nn.Module:
        """The judge, trained once on the real training images. ``features`` are its 64 pooled numbers."""

        def build() -> nn.Module:
            return seeded(lambda: SmallCNN((16, 32, 64), CLASSES, size=PIXELS), self.plan.classifier.seed)

        return kept_weights(
            f"{self.name}-classifier",
            self._content(build(), asdict(self.plan.classifier)),
            build=build,
            make=lambda model: train(model, self.splits().train, self.plan.classifier),
        )

    def guided(self, denoiser: Any, scale: float | None = None) -> Guided:
        """``denoiser`` with guidance, the regime's by default."""
        return Guided(denoiser, self.plan.guidance if scale is None else scale, self.null)

    def noise(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """``count`` initial noises and class numbers (every class equally often), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape, generator=generator), torch.arange(count) % CLASSES

    def features(self, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """The judge's pooled features ``[N, 64]`` and logits ``[N, 10]`` of images in [-1, 1]."""
        judge: Any = self._judge
        with torch.no_grad():
            pooled = torch.cat([judge.pool(judge.stages(part)) for part in images.clamp(-1, 1).split(batch_size)])
            return pooled, judge.head(pooled)

    def judge(self, images: Tensor, labels: Tensor, split: str = "test") -> dict[str, float]:
        """How good generated images are, against the real ones of ``split``.

        ``fid``: Frechet distance of the judge's features (depends on the number of images: compare equal numbers);
        ``conditional_accuracy``: share that the judge takes for the class asked for; ``precision`` and ``recall``
        (Kynkaanniemi et al., 2019, 3 neighbours); ``diversity``: mean feature distance within a class, over that of
        real images; ``high_band``: power above half the highest frequency, over that of real images.
        """
        real, found = getattr(self.splits(), split), self._reference(split)
        features, logits = self.features(images)
        measured = generation.precision_recall(features, found["features"][: len(features)])
        return {
            "fid": generation.frechet_distance(features, found["features"]),
            "conditional_accuracy": float((logits.argmax(1) == labels).float().mean()),
            **measured,
            "diversity": generation.within_class_distance(features, labels)
            / generation.within_class_distance(found["features"], real.labels),
            "high_band": generation.high_band_power(images.clamp(-1, 1)) / generation.high_band_power(real.input),
        }

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``loss``: mean squared error of eps at times and noises that are the same for every model."""
        return {"loss": denoising_loss(model, split, self.schedule)}

    def sample(
        self, denoiser: Any, count: int, *, seed: int = 0, steps: int = 50, scale: float | None = None, batch: int = 100
    ) -> tuple[Tensor, Tensor]:
        """Guided DDIM samples and their classes: the reference sampler of the gate."""
        noise, labels = self.noise(count, seed)
        sampler, guided = DDIM(Grid.spaced(self.schedule, steps)), self.guided(denoiser, scale)
        with torch.inference_mode():
            parts = [
                sampler.sample(guided, part, condition)
                for part, condition in zip(noise.split(batch), labels.split(batch))
            ]
        return torch.cat(parts).clone(), labels

    def gate(self) -> Gate:
        """Samples show their class, but not always; their FID is a fraction of that of blurred real images."""
        content = self._content(self.student(), asdict(self.plan.recipe)) | {
            "classifier": asdict(self.plan.classifier),
            "samples": self.plan.gate_samples,
            "guidance": self.plan.guidance,
            "version": 1,
        }
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        images, labels = self.sample(self.teacher(), self.plan.gate_samples, seed=1)
        judged = self.judge(images, labels, "validation")
        real = self.splits().validation
        shown = torch.as_tensor(real.input)[: self.plan.gate_samples]
        blurred = functional.interpolate(functional.avg_pool2d(shown, 2), scale_factor=2.0, mode="bilinear")
        worst = self.judge(blurred, real.labels[: len(shown)], "validation")["fid"]
        _, logits = self.features(torch.as_tensor(real.input))
        return {
            **judged,
            "blurred_fid": worst,
            "fid_share": judged["fid"] / worst,
            "classifier_accuracy": float((logits.argmax(1) == real.labels).float().mean()),
        }

    def _content(self, network: nn.Module, recipe: dict[str, Any]) -> dict[str, Any]:
        return {
            "network": repr(network),
            "recipe": recipe,
            "data": self.data_hashes(),
            "pixels": PIXELS,
            "train": self.plan.train,
            "validation": self.plan.validation,
            "abar": [float(self.schedule.abar[0]), float(self.schedule.abar[-1])],
        }

    @cached_property
    def _judge(self) -> nn.Module:
        return self.classifier()

    def _reference(self, split: str) -> dict[str, Tensor]:
        if split not in self._references:
            features, _ = self.features(torch.as_tensor(getattr(self.splits(), split).input))
            self._references[split] = {"features": features}
        return self._references[split]

    @cached_property
    def _references(self) -> dict[str, dict[str, Tensor]]:
        return {}

    @property
    def _pools(self) -> tuple[Pool, Pool]:
        return _all_images()


@cache
def _all_images() -> tuple[Pool, Pool]:
    training, test = FashionMNIST().pools()
    return Pool(_small(training.images), training.labels), Pool(_small(test.images), test.labels)


def _small(images: Tensor) -> Tensor:
    padded = functional.pad(images.float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    return functional.avg_pool2d(padded, 2)


def _split(pool: Pool, index: Tensor, offset: int = 0) -> Split:
    return Split(pool.images[index], pool.labels[index], index + offset)
