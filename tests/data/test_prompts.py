from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.data.loaders import TensorLoader
from limbeck.data.prompts import (
    CORNER,
    FOREGROUND,
    KINDS,
    NOTHING,
    OPPOSITE,
    MaskPrompts,
    boxes_of,
    depth_of,
    prompt_at,
    prompt_for,
    random_pixel,
)
from limbeck.data.split import Split
from limbeck.data.sprites import SpriteWorld
from limbeck.errors import UserError


@pytest.fixture(scope="module")
def masks() -> Tensor:
    return SpriteWorld(pixels=32).scenes(torch.arange(6)).masks()


def at(masks: Tensor, points: Tensor) -> Tensor:
    """The masks' values at whole points ``[N, K, 2]``."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in masks.shape[:2]), indexing="ij")
    return masks[rows, columns, points[..., 1].long(), points[..., 0].long()]


def test_boxes_are_those_of_the_scenes() -> None:
    scenes = SpriteWorld(pixels=32).scenes(torch.arange(20))
    assert torch.equal(boxes_of(scenes.masks()), scenes.boxes())


def test_depth_counts_rings_and_the_images_border_is_an_edge() -> None:
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[1:6, 0:5] = True
    assert depth_of(mask)[3, :6].tolist() == [1, 2, 3, 2, 1, 0]
    assert depth_of(mask)[:, 2].tolist() == [0, 1, 2, 3, 2, 1, 0]


def test_points_lie_in_their_object_and_where_their_kind_says(masks: Tensor) -> None:
    view, full = torch.arange(30).view(6, 5), masks.flatten(2).any(2)
    depth = depth_of(masks)
    for kind in ("point", "centre", "edge"):
        points = prompt_at(masks, kind, view)
        assert bool(at(masks, points)[full].all())
        found = at(depth, points)[full]
        if kind == "edge":
            assert found.unique().tolist() == [1]
        if kind == "centre":
            assert torch.equal(found, depth.flatten(2).amax(2)[full])


def test_a_random_pixel_is_drawn_evenly() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = mask[3, 3] = True
    points = random_pixel(mask.expand(300, 4, 4), torch.arange(300) / 300)
    places, counts = points.unique(dim=0, return_counts=True)
    assert places.tolist() == [[0, 3], [2, 1], [3, 3]]
    assert counts.tolist() == [100, 100, 100]


def test_a_loose_box_moves_by_a_tenth_of_its_own_sides_at_most(masks: Tensor) -> None:
    view, full = torch.arange(30).view(6, 5), masks.flatten(2).any(2)
    tight, loose = (prompt_at(masks, kind, view)[full] for kind in ("box", "loose_box"))
    sides = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    share = (loose - tight).abs() / sides
    assert float(share.max()) <= 0.1 + 1e-6
    assert float(share.max()) > 0.05
    assert float(loose.min()) >= 0
    assert float(loose.max()) <= 32


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_a_function_of_the_view(masks: Tensor, kind: str) -> None:
    view = torch.arange(30).view(6, 5)
    once, again = prompt_at(masks, kind, view), prompt_at(masks[:2], kind, view[:2])
    assert torch.equal(once[:2], again)
    if kind in ("point", "loose_box"):
        assert not torch.equal(once, prompt_at(masks, kind, view + 1000))


def test_points_and_boxes_have_two_tokens_each(masks: Tensor) -> None:
    view = torch.arange(30).view(6, 5)
    points, labels = prompt_for(masks, "box", view)
    assert points.shape == (6, 5, 2, 2)
    assert labels[0, 0].tolist() == [CORNER, OPPOSITE]
    points, labels = prompt_for(masks, "centre", view)
    assert points.shape == (6, 5, 2, 2)
    assert labels[0, 0].tolist() == [FOREGROUND, NOTHING]


def test_a_loader_gives_prompts_that_fit_their_targets_and_change_with_the_epoch(masks: Tensor) -> None:
    images = torch.zeros(6, 3, 32, 32)
    loader = TensorLoader(Split(images, masks, torch.arange(6)), 6, transform=MaskPrompts(40, least=12))
    first, second = next(iter(loader)), None
    loader.set_epoch(1)
    second = next(iter(loader))
    given, target = first["input"], first["target"]
    assert target.shape == (6, 40, 32, 32)
    assert int(target.flatten(2).sum(2).min()) >= 12, "objects that hardly show are not asked for"
    assert bool(first["mask"].all())
    pointed = given["labels"][..., 0] == FOREGROUND
    assert 0.3 < float(pointed.double().mean()) < 0.7
    assert bool(at(target, given["points"][:, :, 0])[pointed].all())
    assert not torch.equal(given["points"], second["input"]["points"])
    # Stored answers to the images hold whatever the prompts are, and a cache would refuse a view.
    assert "view" not in first


def test_an_image_without_objects_is_masked() -> None:
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[1, 2, 2:6, 2:6] = True
    loader = TensorLoader(
        Split(torch.zeros(2, 3, 8, 8), masks, torch.arange(2)), 2, shuffle=False, transform=MaskPrompts(4)
    )
    batch = next(iter(loader))
    assert batch["mask"].tolist() == [[False] * 4, [True] * 4]
    assert bool(batch["target"][1].flatten(1).any(1).all())


def test_an_unknown_kind_is_refused(masks: Tensor) -> None:
    with pytest.raises(UserError, match="kind"):
        prompt_at(masks, "scribble", torch.zeros(6, 5, dtype=torch.int64))
