"""What the testbeds of promptable segmentation share: prompts to be judged by, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.prompts import prompt_for
from limbeck.models.segment_anything import SegmentAnything
from limbeck.objectives.masks import best_mask

#: What networks are judged by: the object's box, its innermost pixel, any of its pixels, a pixel of its edge.
KINDS = ("box", "centre", "point", "edge")


@torch.no_grad()
def embeddings(encoder: torch.nn.Module, images: Tensor, batch_size: int = 25) -> Tensor:
    """Of prepared images ``[N, 3, H, W]``, in eval mode."""
    encoder.eval()
    return torch.cat([encoder(part) for part in images.split(batch_size)])


@torch.no_grad()
def answers(
    model: SegmentAnything,
    embedding: Tensor,
    objects: Tensor,
    size: tuple[int, int],
    kinds: Sequence[str] = KINDS,
    batch_size: int = 25,
    draw: int = 0,
) -> dict[str, Tensor]:
    """Kind of prompt -> what ``model`` answers, bool ``[N, K, h, w]``, for objects ``[N, K, H, W]`` of N images.

    Args:
        embedding: of the images, ``[N, C, h / 4, w / 4]``. size: of the images, in whose pixels objects are given.
        draw: another one is another draw of the random pixels.
    """
    views = torch.arange(objects.shape[0] * objects.shape[1]).view(objects.shape[:2]) + draw * 10**6
    found: dict[str, Tensor] = {}
    for kind in kinds:
        points, labels = prompt_for(objects, kind, views)
        parts = [
            best_mask(model.decode(embedding[rows], points[rows], labels[rows], size)) > 0
            for rows in torch.arange(len(objects)).split(batch_size)
        ]
        found[kind] = torch.cat(parts)
    return found
