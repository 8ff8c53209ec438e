"""How well masks agree, by a rule for the empty ones: a reference mask without a pixel is left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.errors import UserError


def mask_iou(predicted: Tensor, reference: Tensor) -> Tensor:
    """Intersection over union of bool masks ``[..., H, W]``: float64 ``[...]``, NaN where the reference is empty.

    An empty prediction of a mask that is not empty has 0. What an empty reference should be compared with is not
    defined, so such masks count nowhere (:func:`mean_iou`), instead of counting as perfect or as wrong.
    """
    if predicted.shape != reference.shape or predicted.dtype != torch.bool or reference.dtype != torch.bool:
        given = f"{predicted.dtype} {list(predicted.shape)}, {reference.dtype} {list(reference.shape)}"
        raise UserError("masks", given, "two bool tensors of one shape [..., H, W]")
    both = (predicted & reference).sum((-2, -1)).double()
    either = (predicted | reference).sum((-2, -1))
    known = reference.flatten(-2).any(-1)
    return torch.where(known, both / either.clamp_min(1), torch.nan)


def mean_iou(predicted: Tensor, reference: Tensor, counted: Tensor | None = None) -> float:
    """Mean of :func:`mask_iou` over the masks whose reference is not empty and that ``counted`` (bool) admits.

    Raises:
        UserError: no such mask.
    """
    values = mask_iou(predicted, reference)
    chosen = ~values.isnan() if counted is None else counted & ~values.isnan()
    if not chosen.any():
        raise UserError("masks", "none that counts", "at least one reference with a pixel")
    return float(values[chosen].mean())


def prompted(
    predicted: Mapping[str, Tensor], reference: Mapping[str, Tensor] | Tensor, name: str, counted: Tensor | None = None
) -> dict[str, float]:
    """Mean IoU by kind of prompt, as ``NAME_KIND``, and their mean as ``NAME``.

    Args:
        predicted: kind of prompt -> bool masks ``[..., H, W]``.
        reference: the same of another network (alignment), or one set of masks for all kinds (truth).
    """
    found = {
        f"{name}_{kind}": mean_iou(masks, reference if isinstance(reference, Tensor) else reference[kind], counted)
        for kind, masks in predicted.items()
    }
    return {name: sum(found.values()) / len(found), **found}
