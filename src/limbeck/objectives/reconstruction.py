"""Objectives on pixels: what a masked autoencoder learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.nn.patches import patchify, standardise
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.signals import Batch, Signals, dense


class MaskedReconstruction(Objective):
    """Mean squared error of predicted pixels on hidden patches alone.

    ``L = sum_{b, l} mask_bl mean_p (predicted - image)_blp^2 / sum mask``, in squared pixel units (He et al.,
    arXiv:2111.06377). It reads what :class:`~limbeck.models.masked_autoencoder.MaskedAutoencoder` and transformers'
    ``ViTMAEForPreTraining`` give: ``logits`` ``[B, L, patch * patch * C]`` and ``mask`` ``[B, L]``, 1 where a patch was
    hidden; and the images, ``batch["input"]["pixel_values"]`` or ``batch["input"]``.

    Args:
        patch: pixels along a patch.
        standardised: the target is every patch with mean 0 and deviation 1 of its own pixels (MAE's ``norm_pix_loss``).
            Its loss is near 1 at the start whatever the images, so that weights of other terms mean something else.
    """

    needs = Needs(student=("logits", "mask"))

    def __init__(self, patch: int, *, standardised: bool = False) -> None:
        super().__init__()
        self.patch, self.standardised = patch, standardised

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        predicted, masked = dense(student, "logits"), dense(student, "mask").bool()
        target = patchify(images_of(batch), self.patch)
        if predicted.shape != target.shape:
            raise UserError("predicted patches", list(predicted.shape), f"{list(target.shape)}, as the images have")
        options: dict[str, Any] = row_options(batch)
        for name, value in options.items():
            if isinstance(value, Tensor) and value.dim() == 1:
                # A mask or weight of images counts for all their patches.
                options[name] = value.unsqueeze(1).expand(masked.shape)
        counted = masked & options.pop("mask", masked)
        truth = standardise(target) if self.standardised else target
        return {"reconstruction": losses.mse(predicted, truth, mask=counted, **options)}

    def extra_repr(self) -> str:
        return f"patch={self.patch}, standardised={self.standardised}"


def images_of(batch: Batch) -> Tensor:
    """The images of a batch whose input is a tensor, or arguments of which one is ``pixel_values`` or ``image``."""
    given = batch["input"]
    images = given.get("pixel_values", given.get("image")) if isinstance(given, Mapping) else given
    if not isinstance(images, Tensor):
        shown = sorted(given) if isinstance(given, Mapping) else type(given)
        raise UserError("batch input", shown, "images, or arguments with pixel_values or image")
    return images
