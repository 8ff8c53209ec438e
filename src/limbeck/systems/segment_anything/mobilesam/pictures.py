"""Masks drawn on images, small enough for the ledger."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.diffusion.pictures import contact_sheet
from limbeck.experiment.pictures import image

_TINTS = torch.tensor([[0.9, 0.3, 0.25], [0.2, 0.65, 0.4], [0.25, 0.45, 0.9], [0.9, 0.75, 0.2], [0.65, 0.35, 0.8]])


def painted(images: Tensor, masks: Tensor) -> Tensor:
    """Images ``[N, 3, S, S]`` in [0, 1], in few greys, with masks ``[N, K, S, S]`` in a colour each: in [-1, 1]."""
    grey = (images.mean(1, keepdim=True) * 8).round().expand(-1, 3, -1, -1) / 8
    shown = grey
    # The largest first, so that what lies inside it is seen.
    for row in range(len(masks)):
        for place in masks[row].flatten(1).sum(1).argsort(descending=True).tolist():
            tint = _TINTS[place % len(_TINTS)].view(3, 1, 1)
            drawn = torch.where(masks[row, place], 0.7 * tint + 0.3 * grey[row], shown[row])
            shown = torch.cat([shown[:row], drawn[None], shown[row + 1 :]])
    return shown * 2 - 1


def sheet(images: Tensor, rows: dict[str, Tensor], *, enlarge: int = 1) -> dict[str, str]:
    """One row of ``images`` per name, with that name's masks ``[N, K, S, S]`` on them; the caption names the rows."""
    made = torch.cat([painted(images, masks) for masks in rows.values()])
    return {f"from above: {', '.join(rows)}": image(contact_sheet(made, len(images), gap=2), enlarge=enlarge)}
