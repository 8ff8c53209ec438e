"""CutMix: shares of pixels are shares of labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.data.augmentation import CropFlip
from limbeck.data.mixing import Chain, CutMix, PartnerMix
from limbeck.data.views import view_seeds
from limbeck.errors import UserError


def batch(seed: int, count: int = 10) -> dict[str, torch.Tensor]:
    # Every picture is filled with its own class.
    target = torch.arange(count)
    view = torch.randint(2**60, (count,), generator=torch.Generator().manual_seed(seed))
    return {"input": target.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8), "target": target, "view": view}


def test_labels_are_mixed_by_the_pixels() -> None:
    mixed_any = False
    for seed in range(20):
        mixed = CutMix(10, probability=1.0)(batch(seed))
        for picture, label in zip(mixed["input"], mixed["target"]):
            shares = torch.bincount(picture.long().flatten(), minlength=10) / 64
            torch.testing.assert_close(label, shares)
        mixed_any |= bool((mixed["target"].max(dim=-1).values < 1).any())
    assert mixed_any


def test_it_mixes_as_often_as_asked_and_replays() -> None:
    changed = sum(not torch.equal(CutMix(10)(batch(seed))["input"], batch(seed)["input"]) for seed in range(200))
    assert 60 < changed < 120  # half, less the empty rectangles
    never = CutMix(10, probability=0.0)(batch(0))
    assert torch.equal(never["target"], torch.eye(10))
    assert torch.equal(CutMix(10)(batch(3))["input"], CutMix(10)(batch(3))["input"])


def test_soft_labels_stay_soft() -> None:
    given = batch(1) | {"target": torch.full((10, 10), 0.1)}
    torch.testing.assert_close(CutMix(10, probability=1.0)(given)["target"], given["target"])


def test_a_chain_applies_in_order() -> None:
    add, double = (lambda one: one | {"input": one["input"] + 1}), (lambda one: one | {"input": 2 * one["input"]})
    assert Chain(add, double)({"input": 1}) == {"input": 4}


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="probability"):
        CutMix(10, probability=2)
    with pytest.raises(UserError, match="beta"):
        CutMix(10, beta=0)
    with pytest.raises(UserError, match="view seeds"):
        CutMix(10)({"input": torch.zeros(1, 1, 2, 2), "target": torch.zeros(1).long()})


def partners(kind: str, **options: Any) -> PartnerMix:
    images = torch.arange(1.0, 11)[:, None, None, None].expand(10, 1, 8, 8)
    return PartnerMix(images, torch.arange(10), 10, kind=kind, **options)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_a_partner_comes_from_the_data_and_labels_are_shares_of_pixels(kind: str) -> None:
    count = 200
    given = {
        "input": torch.zeros(count, 1, 8, 8),
        "target": torch.full((count,), 3),
        "view": view_seeds(0, 0, torch.arange(count)),
    }
    mixed = partners(kind, probability=1.0)(given)
    for image, label in zip(mixed["input"], mixed["target"], strict=True):
        assert float(label.sum()) == pytest.approx(1)
        others = [place for place in label.nonzero().flatten().tolist() if place != 3]
        assert len(others) <= 1
        for partner in others:
            # The sample is black, so that brightness is the partner's share.
            assert float(image.mean()) == pytest.approx((partner + 1) * float(label[partner]), abs=1e-5)
        if kind == "cutmix":
            assert len(image.unique()) <= 2
    plain = (mixed["target"][:, 3] == 1).float().mean()
    assert float(plain) < 0.35
    seldom = partners(kind, probability=0.2)(given)
    assert 0.6 < float((seldom["target"][:, 3] == 1).float().mean()) < 0.95


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_a_mixed_view_does_not_depend_on_its_batch(kind: str) -> None:
    mix = partners(kind, probability=1.0, augment=CropFlip(2))
    given = {
        "input": torch.rand(12, 1, 8, 8),
        "target": torch.arange(12) % 10,
        "view": view_seeds(1, 2, torch.arange(12)),
    }
    whole = mix(given)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:5], order[-1:]):
        some = mix({name: value[rows] for name, value in given.items()})
        assert torch.equal(some["input"], whole["input"][rows])
        assert torch.equal(some["target"], whole["target"][rows])


def test_partners_are_part_of_the_description_and_wrong_ones_are_refused() -> None:
    assert repr(partners("mixup")) == repr(partners("mixup"))
    other = PartnerMix(torch.zeros(10, 1, 8, 8), torch.arange(10), 10, kind="mixup")
    assert repr(other) != repr(partners("mixup"))
    with pytest.raises(UserError, match="cutmix, mixup"):
        partners("cutout")
    with pytest.raises(UserError, match="one per image, 10"):
        PartnerMix(torch.zeros(10, 1, 8, 8), torch.arange(9), 10)
    with pytest.raises(UserError, match="view seeds"):
        partners("mixup")({"input": torch.zeros(1, 1, 8, 8), "target": torch.zeros(1).long()})
