"""Fashion-MNIST for self-supervised pre-training: many images without labels, few with; a masked autoencoder teaches.

The pool's images are seen without labels; an experiment draws those whose labels it may use with :meth:`labelled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.masking import PatchNoise
from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed, view_seeds
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.engine.finetuning import FineTuning
from limbeck.measure import features_of, linear_probe, neighbour_probe
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.vit import ViT, ViTClassifier
from limbeck.nn.patches import patchify, unpatchify
from limbeck.objectives import MaskedReconstruction
from limbeck.signals import Batch, run_network
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.fashion_mnist import DEVIATION, MEAN, FashionMNIST
from limbeck.testbeds.images import Pool
from limbeck.testbeds.recipe import kept_numbers, kept_weights, seeded

SIZE, PATCH = 28, 4
PATCHES = (SIZE // PATCH) ** 2
#: The background of the prepared images.
BLACK = float((torch.zeros(1) - MEAN) / DEVIATION)


_PRETRAINING = OptimizerSettings(lr=2e-3, weight_decay=0.05, warmup=0.1, betas=(0.9, 0.95))


@dataclass(frozen=True)
class Sizes:
    """Of a masked autoencoder: encoder, then decoder, whose attention has two heads."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int


@dataclass(frozen=True)
class Pretraining:
    """How a masked autoencoder is pre-trained: MAE's AdamW settings at small size, shift and mirror as augmentation."""

    epochs: int
    batch_size: int = 64
    optimizer: OptimizerSettings = _PRETRAINING
    crop: int = 2
    seed: int = 0
    version: int = 1


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        teacher, student: sizes. teacher_recipe, recipe: their pre-training.
        pool: images without labels, for both. student_pool: those of them that a student sees.
        labels: numbers of labelled images that experiments may ask for.
        finetuning: of every classifier, by its number of labels.
        validation, test: images held out of training, and test images.
        bounds: of the gate, ``{check: (low, high)}``.
    """

    about: str
    teacher: Sizes
    student: Sizes
    teacher_recipe: Pretraining
    recipe: Pretraining
    pool: int
    student_pool: int
    finetuning: Mapping[int, FineTuning]
    bounds: Mapping[str, tuple[float, float]]
    validation: int = 2000
    test: int = 3000

    @property
    def labels(self) -> tuple[int, ...]:
        """The numbers of labels, fewest first."""
        return tuple(sorted(self.finetuning))


def _finetuning(epochs: int, batch_size: int) -> FineTuning:
    # In so few steps a shallow network gains nothing from slower lower layers, nor from augmentation.
    return FineTuning(epochs, batch_size, OptimizerSettings(lr=3e-3, weight_decay=0.05, warmup=0.1))


class MaskedFashion(Testbed):
    """See the module. Images are ``[N, 1, 28, 28]`` with mean 0 and deviation 1, of 49 patches of 4 x 4 pixels."""

    name = "masked_fashion"
    regimes = {
        "plain": Regime(
            "30,000 images without labels for the teacher, 8,000 of them for students; labels of 1,000 or 4,000",
            teacher=Sizes(48, 8, 3, 32, 1),
            student=Sizes(32, 4, 2, 16, 1),
            teacher_recipe=Pretraining(epochs=8),
            recipe=Pretraining(epochs=2, batch_size=32, optimizer=replace(_PRETRAINING, lr=3e-3)),
            pool=30000,
            student_pool=8000,
            finetuning={1000: _finetuning(8, 20), 4000: _finetuning(2, 20)},
            bounds={
                # 0 is to paint every hidden patch with the mean of what is seen.
                "teacher_explained": (0.5, 0.99),
                "teacher_neighbours": (0.6, 0.95),
                "teacher_neighbours_lead": (0.02, 1.0),
            },
        ),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan: Regime = chosen if size == "full" else self.smoke(chosen)

    @staticmethod
    def smoke(regime: Regime) -> Regime:
        """The same regime in seconds: small networks that hardly learn."""
        few = _finetuning(2, 25)
        return replace(
            regime,
            teacher=Sizes(24, 4, 2, 16, 1),
            student=Sizes(16, 2, 2, 16, 1),
            teacher_recipe=replace(regime.teacher_recipe, epochs=2, batch_size=50),
            recipe=replace(regime.recipe, epochs=2, batch_size=50),
            pool=500,
            student_pool=200,
            finetuning={100: few, 150: few},
            bounds={"teacher_neighbours": (0.0, 1.0)},
            validation=200,
            test=200,
        )

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def data_hashes(self) -> dict[str, str]:
        """Hash of the Debian package."""
        return FashionMNIST().data_hashes()

    def splits(self, seed: int = 0) -> Splits:
        """The student's pool without regard to labels, validation and test images; the same for every seed."""
        test = torch.arange(len(self._pools[1].images))[: self.plan.test] + len(self._pools[0].images)
        return Splits(
            train=self._samples(self._order[: self.plan.student_pool]),
            validation=self._samples(self._order[-self.plan.validation :]),
            test=self._samples(test),
        )

    def labelled(self, count: int, seed: int) -> Split:
        """``count`` images of the student's pool, drawn by seed, whose labels may be used; more include fewer."""
        drawn = torch.randperm(self.plan.student_pool, generator=torch.Generator().manual_seed(epoch_seed(seed, 2)))
        return self._samples(self._order[drawn[:count]])

    def autoencoder(self, sizes: Sizes, seed: int) -> MaskedAutoencoder:
        """An untrained masked autoencoder."""

        def build() -> MaskedAutoencoder:
            encoder = ViT(SIZE, PATCH, sizes.width, sizes.depth, sizes.heads)
            return MaskedAutoencoder(encoder, width=sizes.decoder_width, depth=sizes.decoder_depth, heads=2)

        return seeded(build, seed)

    def student(self, seed: int = 0) -> MaskedAutoencoder:
        """See :class:`Testbed`."""
        return self.autoencoder(self.plan.student, seed)

    def untrained_teacher(self, seed: int = 0) -> MaskedAutoencoder:
        """The teacher's architecture with fresh weights: a control."""
        return self.autoencoder(self.plan.teacher, seed)

    def teacher(self) -> MaskedAutoencoder:
        """The pre-trained masked autoencoder."""
        recipe = self.plan.teacher_recipe

        def make(model: nn.Module) -> nn.Module:
            samples = self._samples(self._order[: self.plan.pool])
            distiller = Distiller(model, MaskedReconstruction(PATCH), optimizer=recipe.optimizer)
            fit(distiller, self.loader(samples, recipe), epochs=recipe.epochs, seed=recipe.seed, accelerator="cpu")
            return distiller.finish()

        return kept_weights(
            f"{self.name}-teacher", self._content(), build=lambda: self.untrained_teacher(recipe.seed), make=make
        )

    def finetuned_teacher(self, count: int, seed: int) -> ViTClassifier:
        """The teacher fine-tuned on the labelled images of a seed, made once and kept."""
        recipe = self.plan.finetuning[count]

        def make(model: nn.Module) -> nn.Module:
            encoder: Any = model.encoder
            encoder.load_state_dict(self.teacher().encoder.state_dict())
            recipe(model, self.labelled(count, seed), seed=seed, accelerator="cpu")
            return model

        content = self._content() | {"labels": count, "seed": seed, "finetuning": repr(recipe)}
        return kept_weights(
            f"{self.name}-teacher-labels",
            content,
            build=lambda: self.classifier(self.untrained_teacher(), seed),
            make=make,
        )

    def classifier(self, model: MaskedAutoencoder, seed: int = 0) -> ViTClassifier:
        """A classifier around the encoder itself, with a fresh head."""
        return seeded(lambda: ViTClassifier(model.encoder, self.num_classes), seed)

    def loader(self, samples: Split, recipe: Pretraining, seed: int | None = None) -> TensorLoader:
        """Batches for masked pre-training: shifted, mirrored images and the noise of their masks."""
        transform = PatchNoise(PATCHES, before=CropFlip(recipe.crop, fill=BLACK))
        size = min(recipe.batch_size, len(samples))
        return TensorLoader(
            samples, size, seed=recipe.seed if seed is None else seed, transform=transform, drop_last=True
        )

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``reconstruction``: mean squared error on hidden patches at masks that are the same for every model;
        ``explained``: by how much it is below that of painting them with the mean of what is seen, from 0 to 1."""
        error = baseline = hidden = 0.0
        for batch in self.masked(split):
            images, answer = batch["input"]["pixel_values"], self._answer(model, batch)
            target, mask = patchify(images, PATCH), answer["mask"]
            seen = ((1 - mask)[..., None] * target).sum((1, 2)) / ((1 - mask).sum(1) * target.shape[2])
            error += float((mask * (answer["logits"] - target).square().mean(2)).sum())
            baseline += float((mask * (seen[:, None, None] - target).square().mean(2)).sum())
            hidden += float(mask.sum())
        return {"reconstruction": error / hidden, "explained": 1 - error / baseline}

    def masked(self, split: Split, batch_size: int = 500) -> list[dict[str, Any]]:
        """Batches of a split with masks that depend on the images' ids alone."""
        noise = PatchNoise(PATCHES)
        return [noise({**batch, "view": view_seeds(0, 0, batch["id"])}) for batch in split.batches(batch_size)]

    def features(self, model: MaskedAutoencoder, split: Split) -> Tensor:
        """Mean of the encoder's patch tokens, all patches seen, ``[N, width]``."""
        return features_of(model.encoder, split.batches(500), lambda net, batch: net(batch["input"])[:, 1:].mean(1))

    def probes(self, model: MaskedAutoencoder, train: Split, test: Split) -> dict[str, float]:
        """Accuracy read off frozen features: ``probe`` by logistic regression, ``neighbours`` by nearest neighbours."""
        given = self.features(model, train), train.labels, self.features(model, test), test.labels
        return {"probe": linear_probe(*given)["accuracy"], "neighbours": neighbour_probe(*given)}

    def reconstructions(self, model: nn.Module, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Images, with hidden patches in grey, and with hidden patches as ``model`` predicts them, all in [-1, 1]."""
        batch = self.masked(split, len(split))[0]
        answer, target = self._answer(model, batch), patchify(batch["input"]["pixel_values"], PATCH)
        mask = answer["mask"][..., None]
        low, high = target.min(), target.max()
        grey = torch.where(mask > 0, (low + high) / 2, target)
        filled = torch.where(mask > 0, answer["logits"], target)
        shown = [unpatchify((part - low) / (high - low) * 2 - 1, PATCH, 1) for part in (target, grey, filled)]
        return shown[0], shown[1], shown[2]

    def gate(self) -> Gate:
        """The teacher paints hidden patches far better than their mean, and its features say more than random ones."""
        content = self._content() | {"labels": self.plan.labels[0]}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        validation, labelled = self.splits().validation, self.labelled(self.plan.labels[0], 0)
        teacher, random = self.teacher(), self.untrained_teacher()
        figures = {f"teacher_{key}": value for key, value in self.evaluate(teacher, validation).items()}
        figures |= {f"teacher_{key}": value for key, value in self.probes(teacher, labelled, validation).items()}
        figures |= {f"random_{key}": value for key, value in self.probes(random, labelled, validation).items()}
        return {**figures, "teacher_neighbours_lead": figures["teacher_neighbours"] - figures["random_neighbours"]}

    @staticmethod
    def _answer(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode():
            return run_network(model.eval(), batch)

    def _content(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "network": asdict(plan.teacher),
            "recipe": asdict(plan.teacher_recipe),
            "data": self.data_hashes(),
            "pool": [plan.pool, plan.student_pool, plan.validation],
        }

    @cached_property
    def _pools(self) -> tuple[Pool, Pool]:
        return FashionMNIST().pools()

    @cached_property
    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(epoch_seed(0, 0))
        return torch.randperm(len(self._pools[0].images), generator=generator)

    def _samples(self, ids: Tensor) -> Split:
        training, test = self._pools
        offset = len(training.images)
        pool, index = (test, ids - offset) if int(ids.min()) >= offset else (training, ids)
        return Split(FashionMNIST().prepare(pool.images[index], ids), pool.labels[index], ids)
