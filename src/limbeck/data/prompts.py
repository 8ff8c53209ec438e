"""Prompts for a promptable segmenter, made from masks: points and boxes as pure functions of masks and view seeds.

Masks are bool ``[B, K, H, W]``: K objects of an image, of which some may be empty. Points are whole pixels (x, y);
boxes are (x0, y0, x1, y1) with the ends excluded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.data.views import mix, uniform
from limbeck.errors import UserError

#: Where a prompt points: anywhere in the object, its innermost pixel, a pixel of its edge; its box, or that box moved.
KINDS = ("point", "centre", "edge", "box", "loose_box")

#: Labels of a prompt's points, as SAM numbers them.
NOTHING, BACKGROUND, FOREGROUND, CORNER, OPPOSITE = -1, 0, 1, 2, 3


def boxes_of(masks: Tensor) -> Tensor:
    """Around masks ``[..., H, W]``: int64 ``[..., 4]``; zeros for an empty one."""
    ends = []
    for axis in (-2, -1):  # Rows seen along x, columns along y.
        line = masks.any(axis)
        ends.append((line.int().argmax(-1), line.shape[-1] - line.flip(-1).int().argmax(-1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), -1) * masks.flatten(-2).any(-1)[..., None]


def depth_of(masks: Tensor) -> Tensor:
    """How deep every pixel lies in its mask ``[..., H, W]``: 1 at the edge, one more with every ring; 0 outside."""
    left, depth = masks.float().reshape(-1, 1, *masks.shape[-2:]), torch.zeros(1)
    while left.any():
        depth = depth + left
        # A mask that is cut off by the image has its edge there.
        left = 1 - functional.max_pool2d(functional.pad(1 - left, (1, 1, 1, 1), value=1.0), 3, 1)
    return depth.expand_as(left).reshape(masks.shape).long()


def random_pixel(masks: Tensor, draw: Tensor) -> Tensor:
    """The pixel (x, y) of every mask ``[..., H, W]`` that ``draw`` in [0, 1) chooses: int64 ``[..., 2]``."""
    order = masks.flatten(-2).cumsum(-1)
    place = (order > (draw * order[..., -1]).long()[..., None]).int().argmax(-1)
    return torch.stack((place % masks.shape[-1], place // masks.shape[-1]), -1)


def prompt_at(masks: Tensor, kind: str, view: Tensor, *, jitter: float = 0.1) -> Tensor:
    """Points ``[..., 2]`` or boxes ``[..., 4]`` for masks ``[..., H, W]``; ``view`` (int64 ``[...]``) draws where.

    Args:
        kind: one of :data:`KINDS`.
        jitter: how far a loose box's sides move at most, of the box's own width and height.
    """
    if kind not in KINDS:
        raise UserError("kind of prompt", kind, KINDS)
    if kind == "point":
        return random_pixel(masks, uniform(view, 0))
    if kind in ("centre", "edge"):
        depth = depth_of(masks)
        deepest = depth.flatten(-2).amax(-1)[..., None, None]
        chosen = depth == (deepest if kind == "centre" else 1)
        return random_pixel(chosen & masks, uniform(view, 0))
    boxes = boxes_of(masks).float()
    if kind == "box":
        return boxes
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1)[..., [0, 2, 1, 3]]
    moved = (2 * uniform(view[..., None], 1 + torch.arange(4)) - 1).float() * jitter * sides
    limit = torch.tensor([masks.shape[-1], masks.shape[-2]] * 2)
    return torch.minimum((boxes + moved).clamp_min(0), limit)


def box_prompt(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``[..., 2, 2]`` and labels ``[..., 2]`` of boxes ``[..., 4]``."""
    labels = torch.tensor([CORNER, OPPOSITE], device=boxes.device).expand(*boxes.shape[:-1], 2)
    return boxes.float().unflatten(-1, (2, 2)), labels


def point_prompt(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points and labels of single foreground points ``[..., 2]``, filled up with nothing to the length of a box."""
    labels = torch.tensor([FOREGROUND, NOTHING], device=points.device).expand(*points.shape[:-1], 2)
    return torch.stack((points.float(), torch.zeros_like(points, dtype=torch.float32)), -2), labels


def prompt_for(masks: Tensor, kind: str, view: Tensor, *, jitter: float = 0.1) -> tuple[Tensor, Tensor]:
    """:func:`prompt_at` as points and labels."""
    found = prompt_at(masks, kind, view, jitter=jitter)
    return box_prompt(found) if kind in ("box", "loose_box") else point_prompt(found)


class MaskPrompts:
    """A loader's transform: gives every image of a batch prompts for some of its objects, others in every epoch.

    A batch that comes with images as its input and the masks of their objects (bool ``[B, K, H, W]``) as its target
    leaves with ``{"image", "points", "labels"}`` as the input, the masks asked for, ``[B, P, H, W]``, as the target,
    and ``mask`` ``[B, P]``: False where an image has no object to ask for.

    Args:
        prompts: per image, for objects drawn with replacement. least: pixels that an object must show.
        boxes: share of loose boxes; the others are random points. jitter: of the boxes.
    """

    def __init__(self, prompts: int = 2, *, least: int = 12, boxes: float = 0.5, jitter: float = 0.1) -> None:
        self.prompts, self.least, self.boxes, self.jitter = prompts, least, boxes, jitter

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        masks: Tensor = batch["target"]
        views = mix(batch["view"][:, None] + torch.arange(self.prompts))
        eligible = masks.flatten(2).sum(2) >= self.least
        # The objects stand in a row, those that may be asked for first.
        order = eligible.int().argsort(dim=1, descending=True, stable=True)
        counts = eligible.sum(1, keepdim=True)
        chosen = order.gather(1, (uniform(views, 8) * counts).long())
        target = masks[torch.arange(len(masks))[:, None], chosen]
        points, labels = prompt_for(target, "point", views)
        corners, corner_labels = prompt_for(target, "loose_box", views, jitter=self.jitter)
        boxed = uniform(views, 9) < self.boxes
        given = {
            "image": batch["input"],
            "points": torch.where(boxed[..., None, None], corners, points),
            "labels": torch.where(boxed[..., None], corner_labels, labels),
        }
        # The view is that of the prompts; the images are as they were, and stored answers to them hold.
        rest = {name: value for name, value in batch.items() if name != "view"}
        return {**rest, "input": given, "target": target, "mask": (counts > 0).expand_as(chosen)}
