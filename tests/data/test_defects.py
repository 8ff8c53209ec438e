"""Generated defects: nothing outside of the mask is touched, and every set can be made again."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.defects import DefectSynthesiser
from limbeck.data.weave import DEFECTS, woven
from limbeck.errors import UserError

KINDS = ("scratch", "blur", "stain", "stripe", "paste")
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(60, 200, (20, 3, 64, 64), generator=GENERATOR, dtype=torch.uint8)
OTHER = torch.randint(0, 60, (5, 3, 64, 64), generator=GENERATOR, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_exact(kind: str) -> None:
    made = DefectSynthesiser((kind,))(IMAGES, other=OTHER)
    changed = (made.images != IMAGES).any(1)
    assert not bool((changed & ~made.masks).any()), "outside of its mask an image is as it was"
    inside = (changed & made.masks).flatten(1).sum(1) / made.masks.flatten(1).sum(1)
    assert float(inside.min()) > 0.3, "most of a mask is changed"
    assert 0 < float(made.masks.flatten(1).float().mean(1).max()) < 0.12, "a defect is small"


def test_kinds_take_turns_and_sets_are_made_again() -> None:
    synthesiser = DefectSynthesiser()
    made, again = synthesiser(IMAGES, seed=3, other=OTHER), synthesiser(IMAGES, seed=3, other=OTHER)
    assert torch.equal(made.images, again.images)
    assert made.kinds.tolist() == list(range(5)) * 4
    part = synthesiser(IMAGES[:7], seed=3, other=OTHER)
    assert torch.equal(part.images, made.images[:7]), "an image's defect does not depend on how many there are"
    assert not torch.equal(synthesiser(IMAGES, seed=4, other=OTHER).images, made.images)
    assert float(made.contrast.min()) >= 0.15
    assert float(made.contrast.max()) <= 0.4


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(UserError, match="tear"):
        DefectSynthesiser(("tear",))
    with pytest.raises(UserError, match="other"):
        DefectSynthesiser()(IMAGES)
    with pytest.raises(UserError, match="uint8"):
        DefectSynthesiser(("blur",))(IMAGES.float())


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_loom_lies_in_its_mask(defect: str) -> None:
    good, blank, _ = woven(6, seed=5)
    bad, masks, kinds = woven(6, seed=5, defects=(defect,))
    assert not bool(blank.any())
    assert bool(masks.flatten(1).any(1).all())
    assert kinds.tolist() == [0] * 6
    assert bad.shape == good.shape == (6, 3, 64, 64)
    assert 0 < float(masks.float().mean()) < 0.15


def test_cloths_differ_and_are_made_again() -> None:
    first, again = woven(3, seed=1)[0], woven(3, seed=1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(UserError, match="moth"):
        woven(1, defects=("moth",))
