"""The testbeds of anomaly detection: disjoint parts, kept features, gates."""

from __future__ import annotations

import pytest
import torch

from limbeck import testbeds
from limbeck.nn.anomaly_map import AnomalyMap
from limbeck.testbeds.anomaly import TILE, AnomalyTestbed, by_image
from limbeck.testbeds.textures import TEXTURES

REFERENCES = ("surfaces:plain", "surfaces:solar", "textures:plain", "textures:unseen")


def smoke(reference: str) -> AnomalyTestbed:
    bed = testbeds.load(reference, "smoke")
    assert isinstance(bed, AnomalyTestbed)
    return bed


@pytest.mark.parametrize("reference", REFERENCES)
def test_splits_are_disjoint_good_and_made_again(reference: str) -> None:
    bed = smoke(reference)
    splits, again, other = bed.splits(0), bed.splits(0), bed.splits(bed.folds or 1)
    ids = [set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not ids[0] & ids[1]
    assert not (ids[0] | ids[1]) & ids[2]
    for plain, blurred in zip((splits.train, splits.validation), splits.blurred, strict=True):
        assert plain.id.tolist() == blurred.id.tolist()
        assert float(blurred.input.std()) < float(plain.input.std())  # type: ignore[union-attr]
    assert int(splits.train.labels.max()) == 0
    assert torch.equal(splits.train.input, again.train.input)  # type: ignore[arg-type]
    assert splits.train.id.tolist() != other.train.id.tolist()
    assert torch.equal(splits.test.input, other.test.input)  # type: ignore[arg-type]
    assert 0 < int((splits.surfaces.kind > 0).sum()) < len(splits.surfaces.kind)


@pytest.mark.parametrize("reference", REFERENCES)
def test_maps_are_of_the_same_samples(reference: str) -> None:
    bed = smoke(reference)
    tiles, maps = bed.splits(1), bed.features(1)
    for part in ("train", "validation", "test"):
        assert getattr(tiles, part).id.tolist() == getattr(maps, part).id.tolist()
    assert {name: tuple(one.shape[1:]) for name, one in maps.train.input.items()} == bed.shapes  # type: ignore[union-attr]
    assert bed.gate().passed


def test_a_perfect_map_gets_full_marks() -> None:
    bed = smoke("textures:plain")
    splits = bed.splits(0)
    masks = splits.surfaces.masks
    assert masks is not None
    good = torch.zeros(4, TILE, TILE)
    found = bed.measure(masks.float(), splits, {"": good})
    assert found["auroc"] == found["pixel_auroc"] == found["region_overlap"] == found["recall"] == 1.0
    assert found["false_alarms"] == 0.0


def test_the_texture_of_a_seed_is_not_learnt_from_when_it_is_unseen() -> None:
    bed = smoke("textures:unseen")
    alone = {name: smoke("textures:plain").surfaces(seed).good for seed, name in enumerate(TEXTURES)}
    learnt = bed.surfaces(1).good
    own = {bytes(tile.numpy().tobytes()) for tile in alone[TEXTURES[1]]}
    assert not own & {bytes(tile.numpy().tobytes()) for tile in learnt}


def test_a_random_teacher_is_another_one_with_live_maps() -> None:
    bed = smoke("textures:plain")
    maps = bed.features(0, bed.random_teacher(0)).test.input
    assert isinstance(maps, dict)
    for name, one in bed.features(0).test.input.items():  # type: ignore[union-attr]
        assert maps[name].shape == one.shape
        assert float(maps[name].std()) > 1e-3
    assert float(AnomalyMap((TILE, TILE))(maps, bed.features(0).test.input).max()) > 0  # type: ignore[arg-type]


def test_an_images_score_is_its_worst_tile() -> None:
    maps = torch.tensor([0.0, 3.0, 1.0, 2.0]).view(4, 1, 1)
    assert by_image(maps, 2).tolist() == [3.0, 2.0]
    assert by_image(maps, 2, "mean").tolist() == [1.5, 1.5]


def test_the_mean_of_an_image_sees_what_its_maximum_hides() -> None:
    bed = smoke("surfaces:plain")
    splits = bed.splits(0)
    bad = splits.surfaces.kind > 0
    maps = torch.where(bad.view(-1, 1, 1), 0.5, 0.1).repeat(1, TILE, TILE)
    maps[~bad, 0, 0] = 1.0
    found = bed.measure(maps, splits, {"": torch.zeros(4, TILE, TILE)})
    assert found["auroc_by_max"] == found["auroc_by_max_global"] == 0.0
    assert found["auroc"] == found["auroc_global"] == found["recall"] == 1.0
    solar = smoke("surfaces:solar")
    assert "auroc_by_mean" in solar.measure(torch.rand(6, TILE, TILE), solar.splits(0), {})


def test_textiles_lose_their_white_border_and_nothing_else() -> None:
    bed = testbeds.load("surfaces:plain")
    assert isinstance(bed, AnomalyTestbed)
    good = bed.surfaces().good.float().view(-1, 4, 4, 3, TILE, TILE)
    assert float(good[:, :, 3, :, :, -1].mean()) < 150 > float(good[:, 3, :, :, -1].mean())
    # Tiles start at 0, 62, 123 and 185: the second column of tiles begins with the end of the first one.
    assert torch.equal(good[:, :, 0, :, :, 62:], good[:, :, 1, :, :, :2])
