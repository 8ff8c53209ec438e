"""The experiments of mobilesam: one small encoder, taught in many ways, put into one frozen pipeline.

Every arm of a seed starts from the same encoder and sees the same images in the same order; arms through the decoder
also see the same prompts. These are placed on true objects even where the target is the teacher's mask, which favours
the rivals: images alone do not say where objects are. The last step counts. ``alignment`` is the mean IoU with the
teacher's answers to the same prompts on test images, ``truth`` that with true masks.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.data.prompts import MaskPrompts
from limbeck.data.split import Split
from limbeck.data.views import mix
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.measure import parameters
from limbeck.measure.masks import prompted
from limbeck.models.segment_anything import SegmentAnything
from limbeck.signals import Batch, Signals
from limbeck.sources import Source
from limbeck.testbeds import sam_photos
from limbeck.testbeds.prompting import embeddings
from limbeck.testbeds.recipe import seeded
from limbeck.testbeds.small_sam import LEAST, asked_for

from .claims import MAIN, PHOTOS
from .method import content_cells, decoupled, prompted_teacher, put_back, through_decoder
from .pictures import sheet

STEPS, BATCH = 500, 8


@dataclass(frozen=True)
class Way:
    """How an arm makes its pipeline.

    Attributes:
        target: ``embedding``; ``masks`` of the teacher or the ``truth``, through the decoder; None: no training.
        learning: what learns, of :func:`.method.through_decoder`. fresh: parts that begin anew.
        distance: of :func:`.method.decoupled`. others: the embeddings are other images'.
        longer, batch_size: factor of the steps; images of a step.
        finetune: further steps, of ``STEPS``, in which the decoder alone learns.
        padding: cells that see padding count. shown: keep pictures.
    """

    target: str | None = "embedding"
    learning: str = "encoder"
    fresh: tuple[str, ...] = ()
    distance: str = "mse"
    others: bool = False
    longer: int = 1
    batch_size: int = BATCH
    finetune: float = 0.0
    padding: bool = True
    shown: bool = False


_ALL = ("prompt_encoder", "mask_decoder")
ARMS = {
    "teacher": Arm(Way(None, shown=True), "the teacher itself", "rival"),
    "none": Arm(
        Way("truth", "everything", _ALL, shown=True), "no teacher: all parts from scratch on true masks", "none"
    ),
    "supervised": Arm(Way("truth"), "true masks through the teacher's frozen decoder", "rival"),
    "semi": Arm(Way("masks", shown=True), "semi-coupled: the teacher's masks through its frozen decoder", "rival"),
    "semi-3x": Arm(Way("masks", longer=3), "semi-coupled, three times the steps", "rival"),
    "coupled": Arm(
        Way("masks", "encoder and decoder"), "coupled: the teacher's decoder learns with the encoder", "rival"
    ),
    "coupled-fresh": Arm(
        Way("masks", "encoder and decoder", ("mask_decoder",), shown=True), "coupled, with a fresh decoder", "rival"
    ),
    "decoupled": Arm(Way(shown=True), "the method: MSE of embeddings"),
    "decoupled-3x": Arm(Way(longer=3), "the method, three times the steps: about the time of semi-coupled"),
    "root": Arm(Way(distance="root"), "square root of the mean squared distance, as a third party trains", "ablation"),
    "cosine": Arm(Way(distance="cosine"), "cosine of every cell instead of MSE", "ablation"),
    "batch-32": Arm(Way(batch_size=32), "32 images a step instead of 8, as many steps", "ablation"),
    "finetuned": Arm(Way(finetune=0.5), "the method, then half as many steps of the decoder alone", "ablation"),
    "wrong-image": Arm(Way(others=True, shown=True), "embeddings of other images", "control"),
}


class Sprites(Experiment):
    """Scenes of 32 x 32 pixels, a small SAM as the teacher, 500 steps."""

    name = "main"
    title = "A small encoder for a small SAM, on the sprite world"
    testbed = "small_sam:plain"
    metric = "alignment"
    arms = ARMS
    claims = MAIN
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    optimizer = OptimizerSettings(lr=6e-3, weight_decay=0.01, warmup=0.05)

    def prepare(self) -> dict[str, Any]:
        """Teacher, gate, stored embeddings and the teacher's answers."""
        gate = self.bed.gate().as_dict()
        self.bed.embeddings()
        self.bed.teacher_answers()
        teacher = self.bed.teacher()
        figures = self.bed.evaluate(teacher, self.bed.splits().test)
        sizes = {"encoder_parameters": float(parameters(teacher.image_encoder)["parameters"])}
        return {"gate": gate, "data": self.bed.data_hashes(), "reference": {"teacher": figures | sizes}}

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Train, put the part back, ask."""
        way: Way = self.arms[arm].setting
        began = time.perf_counter()
        whole, curves, steps = self.train(way, seed)
        seconds = time.perf_counter() - began
        metrics = self.assess(whole) | {"steps": float(steps), "images": float(steps * way.batch_size)}
        metrics["encoder_parameters"] = float(parameters(whole.image_encoder)["parameters"])
        pictures = self.draw(whole) if way.shown and seed == 0 else {}
        cost = {"training_seconds": seconds, "ms_per_step": 1000 * seconds / max(steps, 1)}
        return Outcome(metrics, curves, cost=cost, pictures=pictures)

    def train(self, way: Way, seed: int) -> tuple[SegmentAnything, dict[str, list[float]], int]:
        """The pipeline as an arm leaves it, its curves and its steps."""
        whole = copy.deepcopy(self.bed.teacher())
        if way.target is None:
            return self.untrained(whole, seed), {}, 0
        for part in way.fresh:
            setattr(whole, part, getattr(seeded(lambda: self.bed.network(nn.Identity()), seed), part))
        whole.requires_grad_(True).image_encoder = self.learner(seed)
        steps = self.steps(way.longer)
        if way.target == "embedding":
            source: Source = self.bed.embeddings()
            source = OtherImage(source, self.bed.splits().train.id) if way.others else source
            distiller = decoupled(whole.image_encoder, source, distance=way.distance, optimizer=self.optimizer)
        else:
            distiller = self.through(whole, way.target, way.learning)
        curves = fit_steps(distiller, self.loader(way, seed, prompts=way.target != "embedding"), steps, seed)
        distiller.finish()
        if way.finetune:
            more = max(1, round(steps * way.finetune))
            second = self.through(whole, "masks", "decoder")
            fit_steps(second, self.loader(way, seed, prompts=True), more, seed)
            second.finish()
            steps += more
        return self.finished(whole), curves, steps

    def untrained(self, whole: SegmentAnything, seed: int) -> SegmentAnything:
        """What an arm without training is: here the teacher itself."""
        return whole

    def learner(self, seed: int) -> nn.Module:
        """What learns: from the loader's inputs to embeddings."""
        student: nn.Module = self.bed.student(seed)
        return student

    def finished(self, whole: SegmentAnything) -> SegmentAnything:
        """The pipeline that takes images."""
        return whole.requires_grad_(False).eval()

    def through(self, whole: SegmentAnything, target: str, learning: str) -> Distiller:
        """A rival's training."""
        source = prompted_teacher(self.bed.embeddings(), self.bed.teacher()) if target == "masks" else None
        # Attention with its norms behind it wants a smaller rate than convolutions do.
        slower = replace(self.optimizer, rates=(("student.mask_decoder.*", 1 / 3),))
        return through_decoder(whole, source, learning=learning, optimizer=slower)

    def loader(self, way: Way, seed: int, *, prompts: bool) -> TensorLoader:
        """Batches of the training images, with prompts where the decoder is asked."""
        train = self.bed.splits().train
        if prompts:
            return TensorLoader(
                train, self.batch(way), seed=seed, drop_last=True, transform=MaskPrompts(2, least=LEAST)
            )
        return TensorLoader(Split(train.input, None, train.id), self.batch(way), seed=seed, drop_last=True)

    def batch(self, way: Way) -> int:
        """Images of a step."""
        return min(way.batch_size, 16) if self.size == "smoke" else way.batch_size

    def steps(self, longer: int = 1) -> int:
        """Optimiser steps of an arm."""
        return 6 if self.size == "smoke" else STEPS * longer

    def assess(self, whole: SegmentAnything) -> dict[str, float]:
        """Alignment with the teacher, truth, and the error of the embedding on the test scenes."""
        test = self.bed.splits().test
        found, counted = self.bed.answers(whole, test), asked_for(test)
        ours, theirs = (embeddings(part.image_encoder, test.input) for part in (whole, self.bed.teacher()))
        return {
            **prompted(found, self.bed.teacher_answers(), "alignment", counted),
            **prompted(found, test.labels, "truth", counted),
            "embedding_error": float((ours - theirs).square().mean()),
        }

    def draw(self, whole: SegmentAnything) -> dict[str, str]:
        """Masks of the first test scenes' objects, asked for by box and by innermost pixel."""
        test = self.bed.splits().test.subset(range(min(8, len(self.bed.splits().test))))
        found, seen = self.bed.answers(whole, test), asked_for(test)[..., None, None]
        scenes = (test.input * 0.25 + 0.3).clamp(0, 1)
        rows = {"truth": test.labels, "by box": found["box"], "by innermost pixel": found["centre"]}
        return sheet(scenes, {name: masks & seen for name, masks in rows.items()}, enlarge=2)


PHOTO_ARMS = {
    "none": Arm(Way(None, shown=True), "ImageNet's trunk with a head that never learnt", "none"),
    "semi": Arm(Way("masks", shown=True), "semi-coupled: MobileSAM's masks through its frozen decoder", "rival"),
    "decoupled": Arm(Way(shown=True), "the method: MSE of embeddings"),
    "no-padding": Arm(Way(padding=False), "cells that see padding alone do not count", "ablation"),
    "wrong-image": Arm(Way(others=True, shown=True), "embeddings of other photos", "control"),
}


class Photos(Sprites):
    """Photos at 320 pixels, MobileSAM itself as the teacher. Only the student's head learns, on a frozen trunk's maps
    that are stored as the teacher's embeddings are, and prompts are placed on objects that the teacher found."""

    name = "photos"
    title = "A smaller encoder for MobileSAM itself, on real photos"
    testbed = "sam_photos:plain"
    arms = PHOTO_ARMS
    claims = PHOTOS

    def prepare(self) -> dict[str, Any]:
        self.bed.trunk_maps()
        self.bed.objects("train")
        found = super().prepare()
        student = float(parameters(self.bed.student())["parameters"])
        found["reference"]["student"] = {"encoder_parameters": student}
        return found

    def untrained(self, whole: SegmentAnything, seed: int) -> SegmentAnything:
        return self.with_encoder(self.bed.student(seed))

    def learner(self, seed: int) -> nn.Module:
        head: nn.Module = self.bed.student(seed).head
        return head

    def finished(self, whole: SegmentAnything) -> SegmentAnything:
        encoder = self.bed.student()
        encoder.head = whole.image_encoder
        return self.with_encoder(encoder)

    def with_encoder(self, encoder: nn.Module) -> SegmentAnything:
        """MobileSAM with another encoder, whose output is checked."""
        example = {
            "image": torch.zeros(1, 3, sam_photos.SIDE, sam_photos.SIDE),
            "points": torch.zeros(1, 1, 2, 2), "labels": torch.ones(1, 1, 2, dtype=torch.int64),
        }  # fmt: skip
        whole: Any = put_back(self.bed.teacher(), encoder, example)
        return whole.requires_grad_(False)  # type: ignore[no-any-return]

    def loader(self, way: Way, seed: int, *, prompts: bool) -> TensorLoader:
        train, maps = self.bed.splits().train, self.bed.trunk_maps()
        cells = content_cells(train.labels, (maps.shape[2], maps.shape[3]), sam_photos.STRIDE)
        if prompts:
            data = Split(maps, self.bed.objects("train"), train.id)
            return TensorLoader(data, self.batch(way), seed=seed, drop_last=True, transform=on_maps)
        columns = {"input": maps, "id": train.id} | ({} if way.padding else {"mask": cells})
        return TensorLoader(columns, self.batch(way), seed=seed, drop_last=True)

    def batch(self, way: Way) -> int:
        return min(way.batch_size, 2) if self.size == "smoke" else way.batch_size

    def steps(self, longer: int = 1) -> int:
        return 6 if self.size == "smoke" else 600 * longer

    def assess(self, whole: SegmentAnything) -> dict[str, float]:
        found: dict[str, float] = self.bed.evaluate(whole, self.bed.splits().test)
        return found

    def draw(self, whole: SegmentAnything) -> dict[str, str]:
        """The teacher's and the pipeline's masks of objects on the first test photos."""
        test, theirs, own = self.bed.splits().test, self.bed.teacher_answers(), self.bed.test_answers(whole)
        asked = self.bed.objects("test").flatten(2).any(2)
        some = asked.any(1).nonzero()[:4, 0]
        photos = nn.functional.avg_pool2d(test.input[some].float() / 255, 4)
        seen = asked[some][..., None, None]
        rows = {"MobileSAM by box": theirs["box"], "this encoder by box": own["box"]}
        return sheet(photos, {name: masks[some] & seen for name, masks in rows.items()})


def on_maps(batch: dict[str, Any]) -> dict[str, Any]:
    """Prompts for objects, in pixels of the trunk's maps, which stand for the photos."""
    prompted_batch = MaskPrompts(1, least=LEAST)(batch)
    given = prompted_batch["input"]
    factor = prompted_batch["target"].shape[-1] / given["image"].shape[-1]
    # Places count from a pixel's corner, and SAM adds half a pixel.
    points = (given["points"] + 0.5) / factor - 0.5
    return {**prompted_batch, "input": {**given, "points": points}}


class OtherImage(Source):
    """The control: every sample gets what the teacher says about another one, always the same."""

    def __init__(self, source: Source, ids: Tensor) -> None:
        self.source = source
        order = mix(ids).argsort()
        self.other = dict(zip(ids[order].tolist(), ids[order.roll(1)].tolist(), strict=True))

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        ids = torch.tensor([self.other[number] for number in batch["id"].tolist()])
        return self.source({**batch, "id": ids}, needs)

    def fingerprint(self) -> str:
        return f"another image's {self.source.fingerprint()}"


def fit_steps(distiller: Distiller, loader: TensorLoader, steps: int, seed: int) -> dict[str, list[float]]:
    """Train and give the curves of all terms."""
    every = max(1, steps // 20)
    history = fit(distiller, loader, steps=steps, seed=seed, gradient_clip=1.0, accelerator="cpu", log_every=every)
    return {name: history.curve(name)["y"] for name in history.names() if name != "loss"}


EXPERIMENTS: dict[str, type[Experiment]] = {"main": Sprites, "photos": Photos}
