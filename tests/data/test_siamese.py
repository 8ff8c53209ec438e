"""Differentiable siamese augmentation: one draw per view, gradients, and each operation by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.data.loaders import TensorLoader
from limbeck.data.siamese import OPERATIONS, SiameseAugment
from limbeck.errors import UserError

VIEWS = torch.arange(400)


def images(count: int = 400, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_equal_views_share_a_draw_and_others_do_not(operation: str) -> None:
    augment, picture = SiameseAugment((operation,)), images(1)
    same = augment.images(picture.expand(5, -1, -1, -1), torch.tensor(7))
    assert torch.equal(same, same[:1].expand_as(same))
    alone = augment.images(picture, torch.tensor([7]))
    torch.testing.assert_close(alone, same[:1])
    many = augment.images(picture.expand(40, -1, -1, -1), VIEWS[:40])
    assert not torch.equal(many, many[:1].expand_as(many))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_reach_the_pixels_and_are_right(operation: str) -> None:
    augment = SiameseAugment((operation,))
    pixels = images(2, 2, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: augment.images(one, VIEWS[:2]), pixels)


def test_real_and_synthetic_are_changed_alike() -> None:
    # A siamese draw commutes with mixing the two sets: everything but colour is linear.
    augment = SiameseAugment(("crop", "cutout", "flip", "scale", "rotate"))
    one, other, view = images(3), images(6)[3:], VIEWS[:3]
    mixed = augment.images(0.3 * one + 0.7 * other, view)
    torch.testing.assert_close(mixed, 0.3 * augment.images(one, view) + 0.7 * augment.images(other, view))


def test_cutout_covers_a_quarter_or_what_the_edge_leaves() -> None:
    cut = SiameseAugment(("cutout",)).images(torch.ones(400, 1, 8, 8), VIEWS)
    holes = (cut == 0).sum(dim=(1, 2, 3))
    assert int(holes.max()) == 16
    assert int(holes.min()) >= 4
    assert set(cut.unique().tolist()) == {0.0, 1.0}


def test_crop_shifts_by_at_most_an_eighth() -> None:
    dot = torch.zeros(400, 1, 16, 16)
    dot[:, :, 8, 8] = 1
    rows = SiameseAugment(("crop",)).images(dot, VIEWS).sum(dim=(1, 3)).argmax(dim=-1)
    assert sorted(set(rows.tolist())) == [6, 7, 8, 9, 10]


def test_half_are_mirrored() -> None:
    pictures = images()
    mirrored = (SiameseAugment(("flip",)).images(pictures, VIEWS) == pictures.flip(3)).all(dim=(1, 2, 3))
    assert 150 < int(mirrored.sum()) < 250


def test_colour_keeps_what_its_strengths_say() -> None:
    pictures = images()
    brighter = SiameseAugment(("color",), saturation=0.0, contrast=0.0).images(pictures, VIEWS)
    grey = brighter.std(dim=1).abs().max()
    assert grey < 1e-5, "no saturation leaves grey"
    shift = brighter.mean(dim=(1, 2, 3)) - pictures.mean(dim=(1, 2, 3))
    assert shift.abs().max() <= 0.5
    assert shift.abs().max() > 0.4


def test_one_operation_at_a_time() -> None:
    augment = SiameseAugment(("flip", "cutout"), one=True)
    ones = augment.images(torch.ones(400, 1, 8, 8), VIEWS)
    cut = (ones == 0).any(dim=(1, 2, 3)).float().mean()
    assert 0.4 < float(cut) < 0.6


def test_as_a_transform_every_sample_has_its_own_view() -> None:
    data = {"input": images(6), "id": torch.arange(6)}
    loader = TensorLoader(data, 6, shuffle=False, transform=SiameseAugment())
    again = TensorLoader(data, 6, shuffle=False, transform=SiameseAugment())
    first = next(iter(loader))
    assert torch.equal(first["input"], next(iter(again))["input"])
    assert len(first["view"].unique()) == 6


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="operation: given jpeg"):
        SiameseAugment(("jpeg",))
    with pytest.raises(UserError, match="scale"):
        SiameseAugment(scale=0.5)
    with pytest.raises(UserError, match="view seeds"):
        SiameseAugment()({"input": images(1)})
