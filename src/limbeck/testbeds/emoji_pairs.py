"""Emoji and their names: real pictures with real descriptions, of concepts that are held out whole.

Two artists drew every concept, and both drawings share its description, the Unicode name and subcategory ("mouse face
animal mammal"). As in ALBEF the image encoder was pre-trained on labels first: the subcategory of the training
drawings. A test concept is never seen in training, in neither artist's hand, so what is found must be put
together from words and shapes of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.emoji import PIXELS, data_hashes, load_emoji
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.data.views import epoch_seed
from limbeck.data.words import Words
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.models.vision_language import VisionLanguage
from limbeck.models.vit import ViT, ViTClassifier
from limbeck.objectives import InfoNCE
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.pairs import Sizes, pair_recall
from limbeck.testbeds.recipe import Recipe, kept_numbers, kept_weights, seeded, train

PATCH, LENGTH = 8, 16
MEAN, DEVIATION = 0.75, 0.3


_STUDENT = Sizes(48, 2)
_NAMING = Recipe(epochs=30, learning_rate=2e-3, weight_decay=0.05, label_smoothing=0.1, crop=3)


@dataclass(frozen=True)
class Regime:
    """Concepts of each part, the networks, the pre-training of their image encoder (``recipe``), and the training of
    the teacher, a small CLIP on the same pairs."""

    about: str
    train: int = 1400
    validation: int = 150
    test: int = 300
    student: Sizes = _STUDENT
    recipe: Recipe = _NAMING
    teacher_epochs: int = 12
    version: int = 2
    batch_size: int = 64
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            lr=2e-3, weight_decay=0.05, warmup=0.1, rates=(("*temperature", 0.1),)
        )
    )
    bounds: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "teacher_image_to_text_recall@5": (0.08, 0.95),
            "teacher_text_to_image_recall@5": (0.08, 0.95),
        }
    )


class EmojiPairs(Testbed):
    """See the module. Both artists' drawings are in the training part; held-out parts hold Google's alone, one picture
    per description."""

    name = "emoji_pairs"
    regimes = {"plain": Regime("1,400 concepts in two hands each")}

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        smaller = replace(
            chosen,
            train=150,
            validation=50,
            test=60,
            student=Sizes(16, 1, space=16),
            recipe=replace(chosen.recipe, epochs=2),
            teacher_epochs=2,
            bounds={},
        )
        self.plan = chosen if size == "full" else smaller

    @property
    def num_classes(self) -> int:
        """Subcategories."""
        return len(set(self._emoji.kinds))

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the two packages."""
        return data_hashes()

    @cached_property
    def texts(self) -> list[str]:
        """Description of every concept."""
        return [f"{name} {kind}" for name, kind in zip(self._emoji.names, self._emoji.kinds, strict=True)]

    @cached_property
    def words(self) -> Words:
        """Words that stand in two training descriptions; a word of one concept says nothing about others."""
        return Words.of([self.texts[number] for number in self._order[: self.plan.train].tolist()], LENGTH, at_least=2)

    def splits(self, seed: int = 0) -> Splits:
        """The same for every seed. Ids are concepts, those of Twitter's drawings behind Google's."""
        plan, order = self.plan, self._order
        train = order[: plan.train]
        held_out = order[-plan.validation - plan.test :]
        return Splits(
            train=self._pairs(torch.cat([train, train]), torch.arange(2 * plan.train) >= plan.train),
            validation=self._pairs(held_out[: plan.validation]),
            test=self._pairs(held_out[plan.validation :]),
        )

    def image_encoder(self) -> ViT:
        """An untrained one."""
        sizes: Sizes = self.plan.student
        return sizes.image_encoder(PIXELS, PATCH)

    def pretrained(self) -> ViTClassifier:
        """An image encoder that was trained to name the subcategory of the training drawings, made once and kept."""
        names = sorted(set(self._emoji.kinds))
        samples = self.splits().train
        concepts = samples.id % len(self.texts)
        labels = torch.tensor([names.index(self._emoji.kinds[number]) for number in concepts.tolist()])
        given: Any = samples.input
        drawings = Split(given["pixel_values"], labels, samples.id)

        def build() -> ViTClassifier:
            return seeded(lambda: ViTClassifier(self.image_encoder(), len(names), pooling="class_token"), 0)

        content = {"recipe": asdict(self.plan.recipe), "network": repr(build()), "data": self.data_hashes(),
                   "train": self.plan.train, "pooling": "class_token"}  # fmt: skip
        return kept_weights(
            f"{self.name}-pretrained", content, build, lambda model: train(model, drawings, self.plan.recipe)
        )

    def dual_encoder(self, seed: int, *, fusion: bool) -> VisionLanguage:
        """Two encoders and projections with fresh weights; with ``fusion`` a fusion encoder and its two heads too."""
        sizes: Sizes = self.plan.student
        return sizes.dual_encoder(PIXELS, PATCH, len(self.words), LENGTH, seed, fusion=fusion)

    def student(self, seed: int = 0) -> VisionLanguage:
        """With a fusion encoder that is a function of ``seed``; the two encoders are the teacher's."""
        model = self.dual_encoder(seed, fusion=True)
        model.load_state_dict(self.teacher().state_dict(), strict=False)
        return model

    def teacher(self) -> VisionLanguage:
        """A small CLIP trained on the training pairs: what students begin with."""
        plan = self.plan

        def make(model: nn.Module) -> nn.Module:
            objective = InfoNCE("temperature", query="image", document="text", ids="target")
            distiller = Distiller(self._with_pretrained(model), objective, optimizer=plan.optimizer)
            loader = TensorLoader(self.splits().train, plan.batch_size, drop_last=True)
            fit(distiller, loader, epochs=plan.teacher_epochs, accelerator="cpu")
            return distiller.finish()

        content = {"plan": repr(plan), "data": self.data_hashes(), "network": repr(self.dual_encoder(0, fusion=False))}
        return kept_weights(f"{self.name}-clip", content, lambda: self.dual_encoder(0, fusion=False), make)

    def _with_pretrained(self, model: Any) -> Any:
        model.image.load_state_dict(self.pretrained().encoder.state_dict())
        return model

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Recall in both directions among all pairs of the split, by similarity alone."""
        return pair_recall(model, split)

    def gate(self) -> Gate:
        """Held-out concepts are found more often than by chance (0.033 among 150), and not always."""
        content = {"plan": repr(self.plan), "data": self.data_hashes()}
        figures = kept_numbers(
            f"gate-{self.name}-{self.size}",
            content,
            lambda: {f"teacher_{k}": v for k, v in self.evaluate(self.teacher(), self.splits().validation).items()},
        )
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _pairs(self, concepts: Tensor, by_twitter: Tensor | None = None) -> Split:
        second = torch.zeros(len(concepts), dtype=torch.bool) if by_twitter is None else by_twitter
        pictures = torch.where(second[:, None, None, None], self._emoji.twitter[concepts], self._emoji.google[concepts])
        images = (pictures.float() / 255 - MEAN) / DEVIATION
        texts = self.words([self.texts[number] for number in concepts.tolist()])
        # Two concepts with one description are alike to who has only the description.
        first: dict[str, int] = {}
        same = [first.setdefault(self.texts[number], number) for number in concepts.tolist()]
        ids = concepts + second * len(self.texts)
        given: Any = {"pixel_values": images, **texts}
        return Split(given, torch.tensor(same), ids)

    @cached_property
    def _emoji(self) -> Any:
        return load_emoji()

    @cached_property
    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(epoch_seed(0, 0))
        return torch.randperm(len(self.texts), generator=generator)
