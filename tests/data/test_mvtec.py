"""Folders in the manner of MVTec AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.images import ImageFormat
from limbeck.data.mvtec import read_anomaly_folder
from limbeck.errors import UserError

FORMAT = ImageFormat(size=(16, 16), resize=(16, 16))


def write(path: Path, value: int, box: tuple[int, int, int, int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((32, 32), 0 if box else value, np.uint8)
    if box:
        pixels[box[0] : box[1], box[2] : box[3]] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write(tmp_path / "train" / "good" / f"{number:03}.png", 100 + number)
    write(tmp_path / "test" / "good" / "000.png", 100)
    write(tmp_path / "test" / "hole" / "000.png", 50)
    write(tmp_path / "test" / "hole" / "001.png", 50)
    for name, top in (("000", 0), ("001", 16)):
        write(tmp_path / "ground_truth" / "hole" / f"{name}_mask.png", 255, (top, top + 16, 0, 32))
    return tmp_path


def test_it_reads_images_kinds_and_masks(folder: Path) -> None:
    found = read_anomaly_folder(folder)
    assert found.kinds == ("good", "hole")
    assert len(found.train) == 3
    assert found.test.labels.tolist() == [0, 1, 1]
    assert len(set(found.train.id.tolist()) | set(found.test.id.tolist())) == 6
    masks = found.decoded_masks(FORMAT)
    assert masks is not None
    assert masks.shape == (3, 16, 16)
    assert masks.flatten(1).float().mean(1).tolist() == [0.0, 0.5, 0.5]
    assert bool(masks[1, :8].all())
    assert torch.equal(masks[2], masks[1].flip(0))


def test_ground_truth_may_be_missing_but_not_in_part(folder: Path) -> None:
    (folder / "ground_truth" / "hole" / "001_mask.png").unlink()
    with pytest.raises(UserError, match=r"001_mask\.png"):
        read_anomaly_folder(folder)
    (folder / "ground_truth" / "hole" / "000_mask.png").unlink()
    (folder / "ground_truth" / "hole").rmdir()
    (folder / "ground_truth").rmdir()
    assert read_anomaly_folder(folder).decoded_masks(FORMAT) is None


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train/good"):
        read_anomaly_folder(tmp_path)
