"""MobileSAM: exchange the heavy part of a frozen pipeline for a small one that was taught its output alone.

SAM is a heavy image encoder E_T and a light decoder D for prompts p. Training a small E_S by the masks that come out
of D(E_S(x), p) is slow: every step passes through the decoder, and if D learns too, both chase each other. But what D
reads is known, so

    decoupled      L = mean (E_S(x) - E_T(x))^2                     no prompt, mask or decoder; E_T(x) is stored once
    semi-coupled   L = L_mask(D(E_S(x), p), D(E_T(x), p))           D frozen
    coupled        the same, and D learns too
    supervised     L = L_mask(D(E_S(x), p), truth)                  D frozen, and true masks are needed
    with L_mask = 20 focal + Dice + (guessed IoU - IoU)^2

and afterwards E_S stands where E_T stood; D and its prompts work as before. Decoupled is the method, the others are
what it is compared with. "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.engine import Distiller, OptimizerSettings
from limbeck.errors import UserError
from limbeck.models.segment_anything import SegmentAnything
from limbeck.objectives import Needs, Objective, PromptedMasks, row_options
from limbeck.objectives.reconstruction import images_of
from limbeck.signals import Batch, Forward, Signals, dense
from limbeck.sources import Continued, Live, Source
from limbeck.taps import swap

DISTANCES = ("mse", "root", "cosine")
LEARNING = ("encoder", "encoder and decoder", "decoder", "everything")
_PATTERNS = (("image_encoder.*",), ("image_encoder.*", "mask_decoder.*"), ("mask_decoder.*",), ("*",))


class EmbeddingLoss(Objective):
    """Distance of embeddings ``[B, C, h, w]``; a batch's ``mask`` ``[B, h, w]`` leaves out cells (padding).

    Args:
        distance: ``mse``: the mean over all elements, as published. ``root``: the square root of the mean over cells of
            the sum over channels, as a third party trains it; its gradient has a length that does not shrink with
            the error. ``cosine``: one minus the cosine of every cell's channels, blind to their scale.
    """

    needs = Needs("embedding", "embedding")

    def __init__(self, distance: str = "mse") -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise UserError("distance", distance, DISTANCES)
        self.distance = distance
        # A root of a mean is no mean of roots: all rows of a batch count together.
        self.batchwise = distance == "root"

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = dense(student, "embedding"), dense(teacher, "embedding")
        options = row_options(batch)
        if self.distance == "cosine":
            return {"cosine": losses.cosine_distance(ours, theirs, axis=1, **options)}
        if self.distance == "mse":
            return {"mse": losses.mse(ours, theirs, axis=1, **options)}
        squared = losses.mse(ours, theirs, axis=1, per_row="sum", **options)
        # The root's slope at zero is infinite.
        return {"root": squared.clamp_min(1e-12).sqrt()}

    def extra_repr(self) -> str:
        return f"distance={self.distance}"


def decoupled(
    student: nn.Module,
    teacher: Source | nn.Module,
    *,
    distance: str = "mse",
    optimizer: OptimizerSettings | None = None,
    forward: Forward | None = None,
) -> Distiller:
    """The method: ``student`` learns to give what ``teacher`` gives.

    Args:
        student: images ``[B, 3, H, W]`` -> embedding, of the teacher's shape and stride; its last layer should be a
            norm as the teacher's is (:func:`limbeck.models.segment_anything.neck`), which fixes the scale.
        teacher: the pipeline's encoder; or a source of its ``embedding``, such as a cache of it. Stored embeddings
            forbid augmentation that the store does not know of.
        forward: how to run an encoder that does not give a bare tensor, as :func:`embed` does one that does.
    """
    run = forward or embed
    source = Live(teacher, forward=run) if isinstance(teacher, nn.Module) else teacher
    return Distiller(student, EmbeddingLoss(distance), source, optimizer=optimizer, forward=run)


def through_decoder(
    pipeline: SegmentAnything,
    teacher: Source | None,
    *,
    learning: str = "encoder",
    optimizer: OptimizerSettings | None = None,
) -> Distiller:
    """The rivals: a pipeline with the small encoder in it learns from masks, on batches with prompts.

    Args:
        teacher: source of masks (:func:`prompted_teacher`); None for the batch's own true ones.
        learning: ``encoder``: semi-coupled (or supervised); ``encoder and decoder``: coupled; ``decoder``: the second
            stage behind :func:`decoupled`; ``everything``: no pipeline is kept at all.
    """
    if learning not in LEARNING:
        raise UserError("learning", learning, LEARNING)
    return Distiller(
        pipeline,
        PromptedMasks("truth" if teacher is None else "teacher"),
        teacher,
        optimizer=optimizer,
        trainable=_PATTERNS[LEARNING.index(learning)],
    )


def prompted_teacher(embeddings: Source, pipeline: SegmentAnything) -> Continued:
    """The whole teacher on a batch's prompts: stored embeddings, and the light decoder live."""
    return Continued(embeddings, pipeline, decode)


def put_back(pipeline: nn.Module, encoder: nn.Module, example: Any, *, path: str = "image_encoder") -> nn.Module:
    """A copy of the pipeline with ``encoder`` at ``path``; the pipeline itself is left alone.

    Args:
        example: an input of the pipeline, on which it runs once: an encoder whose output has another shape there, and
            so another stride or number of channels, is refused.
    """
    whole = copy.deepcopy(pipeline)
    swap(whole, path, encoder, example=example)
    return whole.eval()


def content_cells(sizes: Tensor, cells: tuple[int, int], stride: int) -> Tensor:
    """Which cells of an embedding see the image and not its padding on the right and below: bool ``[B, h, w]``.

    Args:
        sizes: int64 ``[B, 2]``, height and width in pixels of what is not padding. A cell with any of it counts.
    """
    rows, columns = (torch.arange(count) * stride for count in cells)
    return (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None, :] < sizes[:, 1, None, None])


def embed(encoder: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run an encoder on a batch's images, whatever else the batch holds."""
    return {"embedding": encoder(images_of(batch))}


def decode(pipeline: SegmentAnything, signals: Signals, batch: Batch) -> dict[str, Tensor]:
    """What the pipeline says to a batch's prompts when the embedding is known."""
    height, width = images_of(batch).shape[-2:]
    given = batch["input"]
    return pipeline.decode(dense(signals, "embedding"), given["points"], given["labels"], (height, width))
