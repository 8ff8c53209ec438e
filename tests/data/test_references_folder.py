"""``folder:``: images by class, checked before training."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.references import load_data
from limbeck.errors import UserError


def fill(folder, classes=("cat", "dog"), count=10, seed=0, ending="png", mode="RGB"):
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.{ending}")
    return folder


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_folder_per_class(tmp_path, ending):
    data = load_data(f"folder:{fill(tmp_path / 'pets', ending=ending)}")
    assert (data.modality, data.task, data.labels, data.name) == ("image", "classification", ["cat", "dog"], "pets")
    assert [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)] == [16, 2, 2]
    for path, target in zip(data.splits.train.input, data.splits.train.labels.tolist()):
        assert path.split("/")[-2] == data.labels[target]


def test_given_splits(tmp_path):
    fill(tmp_path / "train", seed=0)
    fill(tmp_path / "val", count=3, seed=1)
    fill(tmp_path / "test", count=2, seed=2)
    data = load_data(f"folder:{tmp_path}")
    assert [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)] == [20, 6, 4]
    shutil.rmtree(tmp_path / "test")
    data = load_data(f"folder:{tmp_path}")
    assert [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)] == [18, 6, 2]


def test_ids_and_fingerprint_follow_the_content(tmp_path):
    one = load_data(f"folder:{fill(tmp_path / 'a')}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "b" / "cat" / "00.png")
    two = load_data(f"folder:{tmp_path / 'b'}")
    assert set(one.splits.train.id.tolist()) == set(two.splits.train.id.tolist())
    fill(tmp_path / "c", seed=3)
    assert one.fingerprint != load_data(f"folder:{tmp_path / 'c'}").fingerprint


def test_one_image_in_two_splits_is_noted(tmp_path):
    fill(tmp_path / "train", seed=0)
    fill(tmp_path / "test", count=2, seed=1)
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "cat" / "again.png")
    # Wherever the first copy lands, it is not in the given test split's own right.
    data = load_data(f"folder:{tmp_path}", validation_share=0.05)
    again = set(data.splits.test.id.tolist()) & set(data.splits.train.id.tolist())
    assert len(again) == 1
    assert any("1 test samples (20 %) also stand in training" in note for note in data.notes)


def test_corrupt_images_are_named_before_training(tmp_path):
    fill(tmp_path)
    whole = (tmp_path / "dog" / "3.png").read_bytes()
    (tmp_path / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "1.png").write_text("this is no image")
    with pytest.raises(
        UserError,
        match=r"data: given 2 of 20 images .*on_corrupt=skip: cat/1\.png: not an image; dog/3\.png: .*truncated",
    ):
        load_data(f"folder:{tmp_path}")
    data = load_data(f"folder:{tmp_path}", on_corrupt="skip")
    assert sum(len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)) == 18
    assert any("left out 2 images that cannot be decoded: cat/1.png" in note for note in data.notes)
    with pytest.raises(UserError, match="on_corrupt: given ignore; allowed: error, skip"):
        load_data(f"folder:{tmp_path}", on_corrupt="ignore")


def test_a_truncated_jpeg_is_found_although_it_is_read_small(tmp_path):
    fill(tmp_path, ending="jpg")
    whole = (tmp_path / "dog" / "3.jpg").read_bytes()
    (tmp_path / "dog" / "3.jpg").write_bytes(whole[:-60])
    with pytest.raises(UserError, match=r"1 of 20 images that cannot be decoded.* dog/3\.jpg"):
        load_data(f"folder:{tmp_path}")


def test_many_corrupt_images_are_counted(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "cat").iterdir():
        path.write_text("")
    with pytest.raises(UserError, match="10 of 20 images .*; and 5 more"):
        load_data(f"folder:{tmp_path}")
    for path in (tmp_path / "dog").iterdir():
        path.write_text("")
    with pytest.raises(UserError, match="20 of 20 images"):
        load_data(f"folder:{tmp_path}", on_corrupt="skip")


def test_progress_is_told(tmp_path):
    told = []
    load_data(f"folder:{fill(tmp_path)}", progress=lambda what, done, total: told.append((what, done, total)))
    assert told[-1] == ("checking images", 20, 20)


def test_images_without_classes(tmp_path):
    fill(tmp_path, classes=("",))
    data = load_data(f"folder:{tmp_path}", task="embedding")
    assert (data.task, data.labels, data.splits.train.target) == ("embedding", None, None)
    with pytest.raises(UserError, match=r"data: .*a sub-folder per class; it holds 0\.png"):
        load_data(f"folder:{tmp_path}", task="classification")


def test_given_order_of_classes(tmp_path):
    data = load_data(f"folder:{fill(tmp_path)}", labels=["dog", "cat"])
    assert data.labels == ["dog", "cat"]
    assert {path.split("/")[-2] for path, t in zip(data.splits.train.input, data.splits.train.labels) if t == 0} == {
        "dog"
    }
    with pytest.raises(UserError, match="data train class: given dog; allowed: cat, fox"):
        load_data(f"folder:{tmp_path}", labels=["cat", "fox"])


def test_wrong_folders(tmp_path):
    fill(tmp_path / "good" / "train")
    fill(tmp_path / "good" / "test", classes=("cat", "wolf"))
    with pytest.raises(UserError, match="data test class: given wolf; allowed: cat, dog; every split has"):
        load_data(f"folder:{tmp_path / 'good'}")
    with pytest.raises(UserError, match="there is good; no such folder"):
        load_data(f"folder:{tmp_path / 'goood'}")
    with pytest.raises(UserError, match="with one class, cat; allowed: at least two"):
        load_data(f"folder:{fill(tmp_path / 'one', classes=('cat',))}")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "dog").mkdir()
    with pytest.raises(UserError, match=r"data train: .*images \(\.png, \.jpg"):
        load_data(f"folder:{tmp_path / 'empty'}")
    fill(tmp_path / "halves" / "test")
    with pytest.raises(UserError, match="a folder train beside them"):
        load_data(f"folder:{tmp_path / 'halves'}")
    with pytest.raises(UserError, match="task: given regression"):
        load_data(f"folder:{tmp_path / 'good'}", task="regression")


def test_too_few_images(tmp_path):
    fill(tmp_path, count=1)
    with pytest.raises(UserError, match="2 samples, 2 of them distinct; allowed: at least 3"):
        load_data(f"folder:{tmp_path}")


def test_targets_are_class_numbers(tmp_path):
    data = load_data(f"folder:{fill(tmp_path)}")
    assert data.splits.train.labels.dtype == torch.int64
    assert data.num_classes == 2
