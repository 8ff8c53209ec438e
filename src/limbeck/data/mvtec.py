"""Folders in the manner of MVTec AD: good images to learn from, and test images by kind of defect with masks.

train/good/*.png      test/good/*.png      test/KIND/*.png      ground_truth/KIND/NAME_mask.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data.image_folder import ENDINGS
from limbeck.data.images import ImageFormat, in_threads
from limbeck.data.split import Split
from limbeck.errors import UserError

GOOD = "good"


@dataclass(frozen=True)
class AnomalyFolder:
    """What such a folder holds; images are paths until they are decoded.

    Attributes:
        train: good images, targets 0. test: targets are numbers in ``kinds``, whose first is ``good``.
        masks: for every test image the file of its mask; None for good ones, and where the folder has no ground truth.
    """

    train: Split
    test: Split
    kinds: tuple[str, ...]
    masks: tuple[Path | None, ...]

    def decoded_masks(self, image_format: ImageFormat) -> Tensor | None:
        """bool ``[N, H, W]`` in the geometry of ``image_format``; None where a defect has no mask."""
        if any(path is None for path, kind in zip(self.masks, self.test.labels.tolist(), strict=True) if kind):
            return None
        plain = ImageFormat(
            image_format.size, image_format.resize, image_format.fit, "nearest", mean=(0.0,), std=(1.0,), scale=1.0
        )
        blank = torch.zeros(1, *image_format.size, dtype=torch.uint8)
        read = in_threads(lambda path: blank if path is None else plain.pixels(path), self.masks)
        return torch.stack(list(read)).squeeze(1) > 127


def read_anomaly_folder(root: str | Path) -> AnomalyFolder:
    """Read the names in a folder of one product or texture.

    Raises:
        UserError: folders or images are missing, or a defective image has no mask where others have.
    """
    home = Path(root)
    for needed in (home / "train" / GOOD, home / "test"):
        if not needed.is_dir():
            raise UserError("anomaly folder", str(root), "train/good, test/KIND and, if there is, ground_truth/KIND")
    train = _images(home / "train" / GOOD)
    if not train:
        raise UserError("anomaly folder", f"{root}/train/good without images", f"images ({', '.join(ENDINGS)})")
    found = sorted(path.name for path in (home / "test").iterdir() if path.is_dir())
    kinds = (GOOD, *(name for name in found if name != GOOD))
    paths = {kind: _images(home / "test" / kind) if kind in found else [] for kind in kinds}
    test = [path for kind in kinds for path in paths[kind]]
    targets = [number for number, kind in enumerate(kinds) for _ in paths[kind]]
    truth = home / "ground_truth"
    masks = [_mask(truth, kinds[number], path) for path, number in zip(test, targets, strict=True)]
    numbers = torch.arange(len(train) + len(test))
    return AnomalyFolder(
        Split([str(path) for path in train], torch.zeros(len(train), dtype=torch.int64), numbers[: len(train)]),
        Split([str(path) for path in test], torch.tensor(targets, dtype=torch.int64), numbers[len(train) :]),
        kinds,
        tuple(masks),
    )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def _mask(truth: Path, kind: str, image: Path) -> Path | None:
    if kind == GOOD or not truth.is_dir():
        return None
    for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
        if (truth / kind / name).is_file():
            return truth / kind / name
    raise UserError("mask", f"none for test/{kind}/{image.name}", f"ground_truth/{kind}/{image.stem}_mask.png")
