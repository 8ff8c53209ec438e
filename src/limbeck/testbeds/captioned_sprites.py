"""The captioned sprite world: scenes of two real sprites with a caption, of which a known share is wrong.

The sprites are real Fashion-MNIST and MNIST images; scenes and captions are generated, since no registry holds captions
whose errors are known (see ``data.sprites`` and ``data.captions``). Beside the pairs there are two base models, trained
once: an image encoder that was pre-trained on labels of single sprites, which students begin with as ALBEF does with
DeiT, and a small CLIP trained on true captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.captions import Caption, captions, vocabulary, with_noise
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.data.sprites import KINDS, Scenes, SpriteWorld, data_hashes
from limbeck.data.store import content_hash
from limbeck.data.words import Words
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.models.vision_language import VisionLanguage
from limbeck.models.vit import ViT, ViTClassifier
from limbeck.objectives import InfoNCE
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.pairs import Sizes, pair_recall
from limbeck.testbeds.recipe import Recipe, kept_numbers, kept_tensors, kept_weights, seeded, train

PIXELS, PATCH, LENGTH = 32, 8, 12
#: Mean and deviation that images are scaled by.
MEAN, DEVIATION = 0.35, 0.3
# Where the ids of each kind of scene begin, so that no two share a scene.
_VALIDATION, _LABELLED, _ALIGNED, _TEACHER, _TEST = 100_000, 200_000, 300_000, 400_000, 900_000

_WORLD = SpriteWorld(pixels=PIXELS, objects=(2, 2), side=(0.46, 0.5), spread=0.05, textures=1, clutter=0, noise=0.02)


_STUDENT, _TEACHER_SIZES = Sizes(48, 2), Sizes(80, 3, heads=4)
_NAMING = Recipe(epochs=5, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
_NAMING_WIDE = replace(_NAMING, learning_rate=1.5e-3)


@dataclass(frozen=True)
class Contrast:
    """How the small CLIP is trained."""

    epochs: int
    batch_size: int = 128
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            lr=1e-3, weight_decay=0.05, warmup=0.1, rates=(("*temperature", 0.1),)
        )
    )
    version: int = 2


_CONTRAST, _ALIGNING = Contrast(epochs=6), Contrast(epochs=6)


@dataclass(frozen=True)
class Regime:
    """How many pairs there are and how wrong they are.

    Attributes:
        about: one line.
        noise: share of the training captions that are spoilt.
        train, validation, test: pairs.
        student, teacher: sizes of their encoders.
        labelled: scenes with one sprite that image encoders are pre-trained on. recipe, teacher_recipe: how.
        aligned_train: other pairs, as noisy, on which a student's encoders are aligned before. aligning: how.
        teacher_train: pairs with true captions for the small CLIP, none of them a student's. contrast: its training.
        bounds: of the gate.
    """

    about: str
    noise: float
    train: int = 6400
    validation: int = 500
    test: int = 1000
    student: Sizes = _STUDENT
    teacher: Sizes = _TEACHER_SIZES
    labelled: int = 20000
    recipe: Recipe = _NAMING
    teacher_recipe: Recipe = _NAMING_WIDE
    aligned_train: int = 12800
    aligning: Contrast = _ALIGNING
    teacher_train: int = 20000
    contrast: Contrast = _CONTRAST
    bounds: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "pretrained_accuracy": (0.5, 0.99),
            "aligned_recall@1": (0.02, 0.9),
            "teacher_image_to_text_recall@1": (0.2, 0.98),
            "teacher_text_to_image_recall@1": (0.2, 0.98),
        }
    )


class CaptionedSprites(Testbed):
    """See the module.

    A sample's input holds ``pixel_values`` ``[3, 32, 32]`` with mean about 0, ``input_ids`` and ``attention_mask``
    ``[12]``; its target is the number of its caption as it stands, which pairs with the same caption share.
    """

    name = "captioned_sprites"
    regimes = {
        "plain": Regime("6,400 pairs, every caption true", 0.0),
        "noise_30": Regime("6,400 pairs, 30% of the captions spoilt", 0.3),
        "noise_50": Regime("6,400 pairs, half of the captions spoilt", 0.5),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan = chosen if size == "full" else self.smoke(chosen)
        self.words = Words(vocabulary(), LENGTH)

    @staticmethod
    def smoke(regime: Regime) -> Regime:
        """The same regime in seconds: hardly anything is learned."""
        return replace(
            regime,
            train=256,
            validation=100,
            test=100,
            student=Sizes(16, 1, space=16),
            teacher=Sizes(16, 1, space=16),
            labelled=300,
            recipe=replace(regime.recipe, epochs=2),
            teacher_recipe=replace(regime.teacher_recipe, epochs=2),
            aligned_train=300,
            aligning=replace(regime.aligning, epochs=2, batch_size=50),
            teacher_train=300,
            contrast=replace(regime.contrast, epochs=2, batch_size=50),
            bounds={"pretrained_accuracy": (0.0, 1.0)},
        )

    @property
    def num_classes(self) -> int:
        """Kinds of sprites."""
        return len(KINDS)

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the two packages that scenes are made of."""
        return data_hashes()

    def splits(self, seed: int = 0) -> Splits:
        """Scenes are the same for every seed; which training captions are spoilt, and how, depends on it."""
        told = [str(caption) for caption in self.told(seed)]
        return Splits(
            train=self._pairs("train", told),
            validation=self._pairs("validation", self.true("validation")),
            test=self._pairs("test", self.true("test")),
        )

    def scenes(self, part: str) -> Scenes:
        """Scenes of ``train``, ``validation``, ``test``, ``aligning``, ``teacher``: two sprites; ``labelled``: one."""
        plan = self.plan
        starts = {
            "train": (0, plan.train),
            "validation": (_VALIDATION, plan.validation),
            "labelled": (_LABELLED, plan.labelled),
            "aligning": (_ALIGNED, plan.aligned_train),
            "teacher": (_TEACHER, plan.teacher_train),
            "test": (_TEST, plan.test),
        }
        start, count = starts[part]
        world = replace(_WORLD, objects=(1, 1), spread=0.28) if part == "labelled" else _WORLD

        def draw() -> dict[str, Tensor]:
            found = world.scenes(torch.arange(start, start + count), "test" if part == "test" else "train")
            return {name: getattr(found, name) for name in found.__dataclass_fields__}

        content = {
            "world": asdict(world),
            "ids": [start, count],
            "part": part,
            "data": self.data_hashes(),
            "version": 1,
        }
        return Scenes(**kept_tensors(f"{self.name}-{part}", content, draw))

    def true(self, part: str) -> list[str]:
        """The true captions of a part's scenes."""
        return [str(caption) for caption in captions(self.scenes(part))]

    def told(self, seed: int = 0) -> list[Caption]:
        """The training captions as students get them, each with a record of what is wrong with it."""
        scenes = self.scenes("train")
        return with_noise(captions(scenes), scenes.id, self.plan.noise, seed=seed)

    def images(self, scenes: Scenes) -> Tensor:
        """Scenes as the networks take them."""
        return (scenes.image.float() / 255 - MEAN) / DEVIATION

    # Networks.

    def image_encoder(self, sizes: Sizes) -> ViT:
        """An untrained one."""
        return sizes.image_encoder(PIXELS, PATCH)

    def pretrained(self, sizes: Sizes, recipe: Recipe) -> ViTClassifier:
        """An image encoder that was trained to name single sprites, made once and kept."""
        content = {
            "sizes": asdict(sizes),
            "recipe": asdict(recipe),
            "data": self.data_hashes(),
            "labelled": self.plan.labelled,
            "world": asdict(_WORLD),
            "network": repr(self.image_encoder(sizes)),
            "pooling": "class_token",
        }
        return kept_weights(
            f"{self.name}-pretrained",
            content,
            build=lambda: seeded(
                lambda: ViTClassifier(self.image_encoder(sizes), self.num_classes, pooling="class_token"), 0
            ),
            make=lambda model: train(model, self._labelled(), recipe),
        )

    def dual_encoder(self, sizes: Sizes, seed: int, *, fusion: bool = False) -> VisionLanguage:
        """Two encoders and projections with fresh weights; with ``fusion`` a fusion encoder and its two heads too."""
        return sizes.dual_encoder(PIXELS, PATCH, len(self.words), LENGTH, seed, fusion=fusion)

    def unaligned(self, seed: int = 0) -> VisionLanguage:
        """A student whose image encoder is pre-trained on names, and everything else a function of ``seed``."""
        model = self.dual_encoder(self.plan.student, seed, fusion=True)
        self._named(model, self.plan.student, self.plan.recipe)
        return model

    def student(self, seed: int = 0) -> VisionLanguage:
        """With a fusion encoder that is a function of ``seed``; the two encoders are those of :meth:`aligned`."""
        model = self.dual_encoder(self.plan.student, seed, fusion=True)
        model.load_state_dict(self.aligned().state_dict(), strict=False)
        return model

    def aligned(self) -> VisionLanguage:
        """A student's two encoders after plain contrastive training on other pairs, whose captions are as noisy."""
        plan, scenes = self.plan, self.scenes("aligning")
        texts = [str(one) for one in with_noise(captions(scenes), scenes.id, plan.noise, seed=1_000)]
        return self._contrasted("aligned", plan.student, plan.recipe, plan.aligning, "aligning", texts)

    def teacher(self) -> VisionLanguage:
        """The small CLIP: two encoders trained on true captions, larger than a student's."""
        plan = self.plan
        return self._contrasted(
            "clip", plan.teacher, plan.teacher_recipe, plan.contrast, "teacher", self.true("teacher")
        )

    def _contrasted(
        self, name: str, sizes: Sizes, recipe: Recipe, contrast: Contrast, part: str, texts: list[str]
    ) -> VisionLanguage:
        def make(model: nn.Module) -> nn.Module:
            objective = InfoNCE("temperature", query="image", document="text", ids="target")
            loader = TensorLoader(self._pairs(part, texts), contrast.batch_size, drop_last=True)
            distiller = Distiller(self._named(model, sizes, recipe), objective, optimizer=contrast.optimizer)
            fit(distiller, loader, epochs=contrast.epochs, accelerator="cpu")
            return distiller.finish()

        content = {
            "plan": repr((sizes, recipe, contrast)),
            "texts": content_hash({"texts": texts}),
            "data": self.data_hashes(),
            "world": asdict(_WORLD),
            "network": repr(self.dual_encoder(sizes, 0)),
        }
        return kept_weights(f"{self.name}-{name}", content, lambda: self.dual_encoder(sizes, 0), make)

    def _named(self, model: Any, sizes: Sizes, recipe: Recipe) -> Any:
        classifier: Any = self.pretrained(sizes, recipe)
        model.image.load_state_dict(classifier.encoder.state_dict())
        return model

    # Figures.

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Recall in both directions among all pairs of the split, by similarity alone."""
        return pair_recall(model, split)

    def gate(self) -> Gate:
        """The encoders' start knows the sprites, and the small CLIP finds pairs: neither at chance nor perfect."""
        content = {"plan": repr(self.plan), "data": self.data_hashes(), "world": asdict(_WORLD)}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        held_out, named = self.splits().validation, self._labelled()
        classifier = self.pretrained(self.plan.student, self.plan.recipe)
        # Names of the sprites it was trained on would say little: scenes of the other sprites.
        scenes = replace(_WORLD, objects=(1, 1), spread=0.28).scenes(torch.arange(500), "test")
        with torch.inference_mode():
            right = classifier(self.images(scenes)).argmax(-1) == scenes.kind[:, 0]
        figures = {"pretrained_accuracy": float(right.double().mean()), "labelled": float(len(named))}
        begun = self.evaluate(self.aligned(), held_out)
        figures["aligned_recall@1"] = (begun["image_to_text_recall@1"] + begun["text_to_image_recall@1"]) / 2
        return figures | {f"teacher_{key}": value for key, value in self.evaluate(self.teacher(), held_out).items()}

    def _labelled(self) -> Split:
        scenes = self.scenes("labelled")
        return Split(self.images(scenes), scenes.kind[:, 0], scenes.id)

    def _pairs(self, part: str, texts: list[str]) -> Split:
        scenes, words = self.scenes(part), self.words(texts)
        numbers = {text: number for number, text in enumerate(sorted(set(texts)))}
        target = torch.tensor([numbers[text] for text in texts])
        return Split({"pixel_values": self.images(scenes), **words}, target, scenes.id)

    @cached_property
    def kind_numbers(self) -> Tensor:
        """The words that name sprites, as the tokenizer numbers them."""
        return torch.tensor([self.words.numbers[kind] for kind in KINDS])
