"""Distillation-based fabric anomaly detection (DBFAD; Thomine and Snoussi, Textile Research Journal, 2024).

A frozen ImageNet network T looks at an image of a surface and gives maps t_0 ... t_3 of falling size. A student R is
given those maps, fuses them, squeezes them through a bottleneck and re-creates them from deep to shallow. It learns on
good images alone, so that on a defect the re-creation fails:

    s = R(t),    L = 1/4 sum_l 1/(h_l w_l) sum_(b, x) (1 - cos(s_l(x), t_l(x)))
    A(x) = G_sigma * sum_l 1/(h_l w_l) upsample(1 - cos(s_l, t_l))(x),    score = max_x A(x)

Because of 1/(h w) a level of a quarter of the side counts 16 times: deep levels are stressed. What fits R to fabrics:
the shallowest tap is the stem's, SSPCAB (a masked convolution) and a gate end the bottleneck, and gated links bring a
shallower teacher map to the next deeper level of the decoder. Without links it is the variant for surfaces that were
not learnt from.

The parts are shared ones: taps and stem pooling in :mod:`limbeck.nn.multi_tap`, the student in
:mod:`limbeck.nn.reverse_decoder`, the loss is :class:`limbeck.objectives.LevelCosine`, the map
:class:`limbeck.nn.anomaly_map.AnomalyMap`, training on good images :func:`limbeck.engine.fit_good`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.augmentation import gaussian_blur
from limbeck.data.split import Split
from limbeck.engine import Distiller, OneClassRecipe, fit_good
from limbeck.errors import UserError
from limbeck.nn.anomaly_map import AnomalyMap, image_scores
from limbeck.nn.mode import evaluating
from limbeck.nn.multi_tap import MultiTap
from limbeck.nn.reverse_decoder import ReverseStudent
from limbeck.objectives import LevelCosine
from limbeck.sources import Given

Maps = Mapping[str, Tensor]


class FabricRD:
    """Reverse distillation on the features of a frozen network: ``fit`` on good images, ``predict`` on any.

    Args:
        teacher: a :class:`~limbeck.nn.multi_tap.MultiTap`; None if only features are given.
        size: height and width of the anomaly map; that of the images by default.
        links, attention, fusion, blocks, signed: of :class:`~limbeck.nn.reverse_decoder.ReverseStudent`.
            ``links=False`` is the variant for domain generalisation; no links, no attention and ``concat`` are plain
            reverse distillation. ``signed`` is found from the taps by default.
        weights: of the levels in the map, ``stress``, ``uniform`` or by name; training weighs all alike.
        sigma: of the map's Gaussian in pixels; 4 at 256 pixels, in proportion elsewhere.
        blur: whether training images are blurred by 3 x 3 first, as published. Test images never are.
        validation_share: good images held out to stop early and to set the threshold.
        quantile: of their scores that is the threshold.

    After ``fit``: ``student_``, ``threshold_`` (of scores of unblurred good validation images) and ``history_``.
    """

    def __init__(
        self,
        teacher: MultiTap | None = None,
        *,
        size: tuple[int, int] | None = None,
        links: bool = True,
        attention: bool = True,
        fusion: str = "sum",
        blocks: int = 2,
        signed: bool | None = None,
        weights: str | Mapping[str, float] = "stress",
        sigma: float | None = None,
        blur: bool = True,
        validation_share: float = 0.3,
        quantile: float = 0.95,
        recipe: OneClassRecipe | None = None,
        seed: int = 0,
    ) -> None:
        self.teacher, self.size, self.weights, self.sigma = teacher, size, weights, sigma
        self.parts: dict[str, Any] = {"links": links, "attention": attention, "fusion": fusion, "blocks": blocks}
        self.signed, self.blur, self.validation_share, self.quantile = signed, blur, validation_share, quantile
        self.recipe, self.seed = recipe or OneClassRecipe(), seed

    def fit(self, images: Tensor, **options: Any) -> FabricRD:
        """Learn good ``images``, float ``[N, 3, H, W]`` as the teacher wants them; ``options`` go to the trainer."""
        self.size = self.size or (images.shape[-2], images.shape[-1])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        held = max(round(self.validation_share * len(images)), 1)
        seen = gaussian_blur(images) if self.blur else images
        train, validation = (_split(self._ask(seen[index])) for index in (order[held:], order[:held]))
        return self.fit_features(train, validation, _split(self._ask(images[order[:held]])), **options)

    def fit_features(self, train: Split, validation: Split, sharp: Split | None = None, **options: Any) -> FabricRD:
        """The same from the teacher's maps, computed once: of good images to learn from, of held-out ones to stop by.

        ``sharp`` are the held-out ones without blur, which the threshold is taken from; ``validation`` by default.
        """
        maps = _maps(train)
        shapes = {name: tuple(one.shape[1:]) for name, one in maps.items()}
        # A teacher whose stages end in linear layers has negative features, which a decoder ending in ReLU cannot say.
        signed = any(bool((one < 0).any()) for one in maps.values()) if self.signed is None else self.signed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            student = ReverseStudent(shapes, signed=signed, **self.parts)
        distiller = Distiller(student, LevelCosine(shapes), Given(), optimizer=self.recipe.optimizer)
        self.history_ = fit_good(distiller, train, validation, self.recipe, seed=self.seed, **options)
        self.student_ = distiller.finish()
        held = image_scores(self.predict_features(sharp or validation))
        self.threshold_ = float(np.quantile(held.double().numpy(), self.quantile))
        return self

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps ``[N, H, W]`` and scores ``[N]``; above ``threshold_`` an image is not good."""
        maps = self.predict_features(_split(self._ask(images)))
        return maps, image_scores(maps)

    @torch.no_grad()
    def predict_features(self, features: Split, batch_size: int = 64) -> Tensor:
        """Anomaly maps from the teacher's maps."""
        if not hasattr(self, "student_"):
            raise UserError("detector", "one that has learnt nothing", "one after fit")
        if self.size is None:
            raise UserError("size", "none", "height and width of the map, where only features are given")
        sigma = 4 * self.size[0] / 256 if self.sigma is None else self.sigma
        score = AnomalyMap(self.size, weights=self.weights, sigma=sigma)
        # BatchNorm by its running statistics: an image alone has the map that it has among others.
        with evaluating(self.student_):
            return torch.cat(
                [score(self.student_(batch["input"]), batch["input"]) for batch in features.batches(batch_size)]
            )

    def _ask(self, images: Tensor) -> dict[str, Tensor]:
        if self.teacher is None:
            raise UserError("teacher", "none", "a MultiTap, to look at images")
        answers = [self.teacher(part) for part in images.split(64)]
        return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}


def _split(maps: dict[str, Tensor]) -> Split:
    return Split(maps, None, torch.arange(len(next(iter(maps.values())))))


def _maps(split: Split) -> Maps:
    if not isinstance(split.input, Mapping):
        raise UserError("features", type(split.input).__name__, "a split whose input is a mapping of maps")
    return split.input
