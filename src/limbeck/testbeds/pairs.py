"""What testbeds of pictures and captions share: their networks, and recall in both directions, with and without a judge
of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.measure import retrieval
from limbeck.measure.reranking import Judge, retrieve_and_rerank
from limbeck.models.text import FusionEncoder, TextEncoder
from limbeck.models.vision_language import VisionLanguage
from limbeck.models.vit import ViT
from limbeck.nn.mode import evaluating
from limbeck.testbeds.recipe import seeded

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Sizes:
    """Of the networks: width of all, depths, heads, and the width of the common space."""

    width: int
    image_depth: int
    text_depth: int = 1
    fusion_depth: int = 2
    heads: int = 2
    expansion: int = 2
    space: int = 32

    def image_encoder(self, pixels: int, patch: int) -> ViT:
        """An untrained one."""
        return ViT(
            pixels, patch, self.width, self.image_depth, self.heads,
            in_channels=3, expansion=self.expansion, convolutions=True,
        )  # fmt: skip

    def dual_encoder(
        self, pixels: int, patch: int, words: int, length: int, seed: int, *, fusion: bool
    ) -> VisionLanguage:
        """Two encoders and projections with fresh weights; with ``fusion`` a fusion encoder and its two heads too.

        Args:
            pixels, patch: of an image, a side. words: of the vocabulary. length: of a text at most.
        """
        width, options = self.width, {"heads": self.heads, "expansion": self.expansion}

        def build() -> nn.Module:
            return VisionLanguage(
                self.image_encoder(pixels, patch),
                TextEncoder(words, width, self.text_depth, length=length, **options),
                nn.Linear(width, self.space),
                nn.Linear(width, self.space),
                fusion=FusionEncoder(width, self.fusion_depth, image_width=width, **options) if fusion else None,
                words=nn.Linear(width, words) if fusion else None,
            )

        return seeded(build, seed)  # type: ignore[return-value]


class EncodedPairs:
    """The pairs of a split as a network sees them: tokens and unit vectors, made once.

    Args:
        model: a :class:`~limbeck.models.vision_language.VisionLanguage`.
        split: pairs; ``target`` says which captions are the same, and so which candidates are right.
    """

    def __init__(self, model: nn.Module, split: Split, *, batch_size: int = 500) -> None:
        if not isinstance(model, VisionLanguage):
            raise UserError("model", type(model).__name__, "a VisionLanguage network")
        self.model = model
        tokens: list[tuple[Tensor, Tensor]] = []
        with evaluating(model), torch.inference_mode():
            for batch in split.batches(batch_size):
                given: Any = batch["input"]
                texts = model.text_tokens(given["input_ids"], given["attention_mask"])
                tokens.append((model.image_tokens(given["pixel_values"]), texts))
            self.image_tokens, self.text_tokens = (torch.cat(side) for side in zip(*tokens, strict=True))
            self.image, self.text = model.embed_image(self.image_tokens), model.embed_text(self.text_tokens)
        whole: Any = split.input
        self.mask, self.target = whole["attention_mask"], split.labels

    @property
    def similarity(self) -> Tensor:
        """Cosines ``[images, texts]``."""
        return self.image @ self.text.mT

    @property
    def right(self) -> Tensor:
        """Which texts are an image's own, word for word: bool ``[images, texts]``."""
        return self.target[:, None] == self.target[None]

    def judge(self, images: Tensor, texts: Tensor) -> Tensor:
        """How well pairs (image number, text number) fit: log-odds of the matching head."""
        with evaluating(self.model), torch.inference_mode():
            fused = self.model.fuse(self.text_tokens[texts], self.mask[texts], self.image_tokens[images])
            logits = self.model.match(fused)
        return logits[:, 1] - logits[:, 0]

    def recall(self, at: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        """``image_to_text_recall@k`` and ``text_to_image_recall@k`` by similarity."""
        positives = [row.nonzero()[:, 0].tolist() for row in self.right]
        sides = ((self.image, self.text), (self.text, self.image))
        return {
            f"{direction}_{name}": value
            for direction, (queries, documents) in zip(DIRECTIONS, sides, strict=True)
            for name, value in retrieval(queries, documents, positives, at=at).items()
            if name != "mrr"
        }

    def reranked(self, length: int, at: tuple[int, ...] = (1,)) -> dict[str, float]:
        """The same when the ``length`` most similar are put in order by :meth:`judge`."""

        def swapped(texts: Tensor, images: Tensor) -> Tensor:
            return self.judge(images, texts)

        judges: tuple[Judge, ...] = (self.judge, swapped)
        sides = (self.similarity, self.similarity.mT)
        return {
            f"{direction}_{name}": value
            for direction, judge, scores in zip(DIRECTIONS, judges, sides, strict=True)
            for name, value in retrieve_and_rerank(scores, judge, self.right, length=length, at=at).items()
        }


def pair_recall(model: nn.Module, split: Split, at: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Recall in both directions among all pairs of a split, by similarity."""
    return EncodedPairs(model, split).recall(at)
