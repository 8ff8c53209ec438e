"""A small SAM on the sprite world: real clothes and digits on generated scenes, whose masks are all known.

The teacher is a :class:`~limbeck.models.segment_anything.SegmentAnything` with SAM's proportions (the encoder has four
times the weights of the decoder), trained once on true masks by random points and loose boxes. Students are encoders
with a thirteenth of its encoder's weights. Scenes of 32 x 32 pixels: one of 64 x 64 would take five times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.cache import fingerprint_module
from limbeck.data import sprites
from limbeck.data.loaders import TensorLoader
from limbeck.data.prompts import MaskPrompts
from limbeck.data.split import Split, Splits
from limbeck.data.sprites import Part, SpriteWorld
from limbeck.errors import UserError
from limbeck.measure.masks import prompted
from limbeck.models.image_encoders import HybridEncoder
from limbeck.models.segment_anything import SegmentAnything
from limbeck.objectives import PromptedMasks, total
from limbeck.sources import Cached, Live
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.prompting import KINDS, answers, embeddings
from limbeck.testbeds.recipe import kept_numbers, kept_signals, kept_tensors, kept_weights, seeded, warm_cosine

#: Channels of the embedding.
WIDTH = 48
#: An object that shows fewer pixels is neither asked for nor judged by.
LEAST = 12
# Where the ids of the parts begin; the teacher's scenes are none of the student's.
_TRAIN, _TEACHER, _VALIDATION = 0, 100_000, 200_000


@dataclass(frozen=True)
class PromptRecipe:
    """How the teacher is trained: AdamW, a cosine rate after a short warm-up, gradients of norm 1 at most.

    Dice weighs more than in Segment Anything (20 to 1): with few steps, masks else stay empty for long.
    """

    steps: int
    batch_size: int = 8
    prompts: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    focal: float = 20.0
    dice: float = 5.0
    seed: int = 0
    version: int = 1


@dataclass(frozen=True)
class Regime:
    """Scenes of every part, and networks.

    Attributes:
        teacher, student: arguments of :class:`~limbeck.models.image_encoders.HybridEncoder`.
        bounds: of the gate.
    """

    about: str
    recipe: PromptRecipe
    teacher: Mapping[str, int]
    student: Mapping[str, int]
    bounds: Mapping[str, tuple[float, float]]
    train: int = 2000
    teacher_train: int = 6000
    validation: int = 150
    test: int = 250


_STUDENT = {"stem": 8, "width": 24, "local": 1, "depth": 2}
_SMOKE = Regime(
    "seconds",
    PromptRecipe(150, prompts=2, learning_rate=3e-3, focal=1.0),
    {"stem": 8, "width": 32, "local": 1, "depth": 1, "heads": 2},
    _STUDENT,
    {"box_miou": (0.0, 1.0)},
    train=64,
    teacher_train=64,
    validation=16,
    test=16,
)


class SmallSAM(Testbed):
    """See the module. Images are ``[N, 3, 32, 32]``, targets the visible masks of up to five objects."""

    name = "small_sam"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime(
            "2,000 scenes for students, 6,000 others for the teacher",
            PromptRecipe(5000),
            {"stem": 16, "width": 96, "local": 1, "depth": 3, "heads": 4},
            _STUDENT,
            {
                "box_miou": (0.85, 0.98),
                "point_miou": (0.75, 0.98),
                # Of five draws of the prompts: below this, differences of a point are not luck in the drawing.
                "prompt_scatter": (0.0, 0.01),
                "lead_over_untrained_encoder": (0.2, 1.0),
            },
        )
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        self.plan: Regime = self.regimes[regime] if size == "full" else _SMOKE
        self.world = SpriteWorld(pixels=32)

    @property
    def num_classes(self) -> int:
        """In an object or not."""
        return 2

    def data_hashes(self) -> dict[str, str]:
        """Of the two packages that scenes are made of."""
        return sprites.data_hashes()

    def splits(self, seed: int = 0) -> Splits:
        """The same scenes for every seed."""
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        plan = self.plan
        return Splits(
            self._scenes(_TRAIN, plan.train),
            self._scenes(_VALIDATION, plan.validation),
            self._scenes(0, plan.test, "test"),
        )

    def teacher_samples(self) -> Split:
        """The scenes that the teacher is trained on."""
        return self._scenes(_TEACHER, self.plan.teacher_train)

    def _scenes(self, start: int, count: int, part: Part = "train") -> Split:
        scenes = self.world.scenes(torch.arange(start, start + count), part)
        # Scenes of the part "test" have other ids than those of the part "train".
        ids = scenes.id + (10**6 if part == "test" else 0)
        return Split(prepare(scenes.image), scenes.masks(), ids)

    def network(self, encoder: nn.Module) -> SegmentAnything:
        """A pipeline with fresh prompt encoder and decoder around ``encoder``."""
        return SegmentAnything(encoder, width=WIDTH, heads=4, hidden=96)

    def teacher(self) -> SegmentAnything:
        """The trained pipeline, frozen."""
        plan = self.plan

        def build() -> SegmentAnything:
            return seeded(lambda: self.network(HybridEncoder(**plan.teacher, out=WIDTH)), plan.recipe.seed)

        content = {
            "network": repr(build()), "recipe": asdict(plan.recipe), "world": asdict(self.world),
            "scenes": plan.teacher_train, "data": self.data_hashes(),
        }  # fmt: skip
        return kept_weights(
            f"{self.name}-{self.size}", content, build, lambda model: train(model, self.teacher_samples(), plan.recipe)
        )

    def student(self, seed: int = 0) -> nn.Module:
        """A fresh small encoder."""
        return seeded(lambda: HybridEncoder(**self.plan.student, out=WIDTH), seed)

    def embeddings(self) -> Cached:
        """What the teacher's encoder says about the training scenes, from the teacher cache (float16)."""
        samples = self.splits().train
        return kept_signals(
            f"{self.name}-{self.size}",
            Live(self.teacher().image_encoder, forward=_embed),
            samples.batches(50),
            ("embedding",),
            {"preprocessing": "limbeck.testbeds.small_sam.prepare", "data": f"{self.world} {self.data_hashes()}"},
        )

    def teacher_answers(self) -> dict[str, Tensor]:
        """Kind of prompt -> the teacher's masks of the test objects, bool ``[N, K, H, W]``; made once."""
        test, teacher = self.splits().test, self.teacher()

        def make() -> dict[str, Tensor]:
            return {kind: masks.byte() for kind, masks in self.answers(teacher, test).items()}

        content = {
            "teacher": fingerprint_module(teacher), "world": asdict(self.world), "test": len(test), "kinds": KINDS,
            "version": 1,
        }  # fmt: skip
        return {kind: masks.bool() for kind, masks in kept_tensors(f"{self.name}-answers", content, make).items()}

    def answers(self, model: SegmentAnything, split: Split) -> dict[str, Tensor]:
        """What ``model`` answers for every kind of prompt."""
        images = torch.as_tensor(split.input)
        return answers(model, embeddings(model.image_encoder, images), split.labels, (32, 32))

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``truth``: mean IoU with the true masks, by kind of prompt and in the mean."""
        if not isinstance(model, SegmentAnything):
            raise UserError("model", type(model).__name__, "a SegmentAnything, encoder and decoder")
        return prompted(self.answers(model, split), split.labels, "truth", asked_for(split))

    def gate(self) -> Gate:
        """The teacher segments well but not perfectly, by box and by point, and its encoder is what does it."""
        content = {"plan": asdict(self.plan), "world": asdict(self.world), "data": self.data_hashes(), "version": 1}
        figures = kept_numbers(f"gate-{self.name}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        split, teacher = self.splits().validation, self.teacher()
        found = self.evaluate(teacher, split)
        images, counted = torch.as_tensor(split.input), asked_for(split)
        embedding = embeddings(teacher.image_encoder, images)
        points = [
            prompted(answers(teacher, embedding, split.labels, (32, 32), ("point",), draw=draw), split.labels, "truth",
                     counted)["truth"]
            for draw in range(5)
        ]  # fmt: skip
        blind = answers(teacher, embeddings(self.student(), images), split.labels, (32, 32), ("box",))
        return {
            "box_miou": found["truth_box"],
            "point_miou": found["truth_point"],
            "prompt_scatter": float(torch.tensor(points).std()),
            "lead_over_untrained_encoder": found["truth_box"]
            - prompted(blind, split.labels, "truth", counted)["truth"],
        }


def prepare(pixels: Tensor) -> Tensor:
    """uint8 scenes to what the networks see."""
    return (pixels.float() / 255 - 0.3) / 0.25


def asked_for(split: Split) -> Tensor:
    """Which objects of a split show enough to be asked for, bool ``[N, K]``."""
    return split.labels.flatten(2).sum(2) >= LEAST


def train(model: SegmentAnything, samples: Split, recipe: PromptRecipe) -> SegmentAnything:
    """Train a pipeline on true masks; it comes back in eval mode."""
    prompts = MaskPrompts(recipe.prompts, least=LEAST)
    loader = TensorLoader(samples, recipe.batch_size, seed=recipe.seed, drop_last=True, transform=prompts)
    objective = PromptedMasks(focal=recipe.focal, dice=recipe.dice)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / recipe.steps))
    model.train()
    step = 0
    while step < recipe.steps:
        for batch in loader:
            loss = total(objective(model(**batch["input"]), {}, batch))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            if step == recipe.steps:
                break
    return model.eval()


def _embed(encoder: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"embedding": encoder(batch["input"])}
