"""The sprite world: scenes that can be drawn again, with masks, boxes and depth that agree with the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.idx import read_idx
from limbeck.data.sprites import COLOURS, KINDS, Scenes, SpriteWorld, paste
from limbeck.errors import UserError

WORLD = SpriteWorld(pixels=32)
IDS = torch.arange(40)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return WORLD.scenes(IDS)


def test_a_scene_depends_on_its_id_alone(scenes: Scenes) -> None:
    index = torch.tensor([17, 3])
    again, wanted = WORLD.scenes(IDS[index], chunk=1), scenes.subset(index)
    for name in ("image", "instance", "kind", "colour", "texture", "centre", "side"):
        assert torch.equal(getattr(again, name), getattr(wanted, name)), name


def test_parts_and_seeds_are_other_scenes(scenes: Scenes) -> None:
    for other in (WORLD.scenes(IDS, "test"), SpriteWorld(pixels=32, seed=1).scenes(IDS)):
        assert not torch.equal(other.kind, scenes.kind)


def test_objects_are_between_fewest_and_most(scenes: Scenes) -> None:
    counts = (scenes.kind >= 0).sum(1)
    assert int(counts.min()) == 2
    assert int(counts.max()) == 5
    assert torch.equal(scenes.kind >= 0, scenes.colour >= 0)
    assert int(scenes.kind.max()) < len(KINDS)


def test_masks_do_not_overlap_and_nothing_absent_is_seen(scenes: Scenes) -> None:
    masks = scenes.masks()
    assert int(masks.sum(1).max()) == 1
    assert not masks[scenes.kind < 0].any()
    assert torch.equal(scenes.visible(), masks.flatten(2).any(2))


def test_boxes_hold_their_masks_and_touch_them(scenes: Scenes) -> None:
    masks, boxes = scenes.masks(), scenes.boxes()
    for scene, number in scenes.visible().nonzero().tolist():
        x0, y0, x1, y1 = boxes[scene, number].tolist()
        mask = masks[scene, number]
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[y1 - 1].any()
        assert mask[:, x0].any()
        assert mask[:, x1 - 1].any()
    assert not boxes[~scenes.visible()].any()


def test_the_nearest_object_hides_the_others() -> None:
    crowded = SpriteWorld(pixels=32, objects=(4, 4), side=(0.9, 1.0), kinds=(8,), spread=0.0).scenes(IDS)
    seen = crowded.masks().flatten(2).sum(2).float().mean(0)
    assert seen[3] > seen[0]
    alone = SpriteWorld(pixels=32, objects=(1, 1), kinds=(8,)).scenes(IDS)
    assert alone.visible().all()


def test_an_object_has_its_colour() -> None:
    plain = SpriteWorld(pixels=32, objects=(1, 1), textures=1, noise=0.0).scenes(IDS)
    for scene in range(len(plain)):
        pixels = plain.image[scene][:, plain.instance[scene] == 1].float().mean(1)
        if COLOURS[int(plain.colour[scene, 0])] in ("red", "green", "blue"):
            wanted = ("red", "green", "blue").index(COLOURS[int(plain.colour[scene, 0])])
            assert int(pixels.argmax()) == wanted


def test_depth_is_nearer_for_later_objects(scenes: Scenes) -> None:
    depth = scenes.depth()
    assert torch.equal(depth == 1, scenes.instance == 0)
    assert torch.allclose(depth[scenes.instance == 2], torch.tensor(1 - 2 / 5))


def test_paste_keeps_place_and_size() -> None:
    sprite = torch.ones(1, 28, 28)
    drawn = paste(sprite, torch.tensor([[10.0, 20.0]]), torch.tensor([8.0]), 32)
    rows, columns = (drawn[0] > 0.5).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1) == (16, 24, 6, 14)


@pytest.mark.parametrize(
    "wrong", [{"objects": (0, 2)}, {"objects": (3, 2)}, {"side": (0.5, 1.5)}, {"textures": 4}, {"kinds": (20,)}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SpriteWorld(**wrong)  # type: ignore[arg-type]


def test_idx_files_that_are_cut_or_foreign_are_refused(tmp_path: Path) -> None:
    good = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])
    (tmp_path / "good").write_bytes(good)
    assert read_idx(tmp_path / "good").tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "cut").write_bytes(good[:-1])
    (tmp_path / "text").write_bytes(b"hello")
    for name in ("cut", "text"):
        with pytest.raises(UserError, match="idx file"):
            read_idx(tmp_path / name)
