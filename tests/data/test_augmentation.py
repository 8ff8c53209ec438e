from __future__ import annotations

import pytest
import torch

from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.views import view_seeds
from limbeck.errors import UserError


def by_hand(image: torch.Tensor, padding: int, row: int, column: int, mirrored: bool) -> torch.Tensor:
    size = image.shape[-1]
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    cut = padded[:, row : row + size, column : column + size]
    return cut.flip(-1) if mirrored else cut


def test_every_view_is_a_crop_of_the_padded_image_mirrored_or_not() -> None:
    images = torch.rand(200, 3, 6, 6)
    made = CropFlip(2).images(images, view_seeds(0, 0, torch.arange(200)))
    seen = set()
    for image, view in zip(images, made, strict=True):
        places = [
            (row, column, mirrored)
            for row in range(5)
            for column in range(5)
            for mirrored in (False, True)
            if torch.equal(by_hand(image, 2, row, column, mirrored), view)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 40, "of 50 ways 200 images show nearly all"


def test_a_view_can_be_made_again_alone() -> None:
    images, view = torch.rand(8, 1, 5, 5), view_seeds(3, 2, torch.arange(8))
    augment = CropFlip(2)
    together = augment.images(images, view)
    alone = torch.cat([augment.images(images[i : i + 1], view[i : i + 1]) for i in reversed(range(8))])
    assert torch.equal(together, alone.flip(0))


def test_without_padding_and_mirror_nothing_changes() -> None:
    images = torch.rand(4, 1, 5, 5)
    assert torch.equal(CropFlip(0, flip=False).images(images, torch.arange(4)), images)


def test_fill_is_what_the_border_shows() -> None:
    views = CropFlip(4, fill=7.0).images(torch.zeros(50, 1, 4, 4), view_seeds(0, 0, torch.arange(50)))
    assert set(views.unique().tolist()) == {0.0, 7.0}


def test_a_loader_gives_new_views_every_epoch_and_the_same_in_the_same_epoch() -> None:
    data = {"input": torch.rand(10, 1, 8, 8), "id": torch.arange(100, 110)}

    def epoch() -> TensorLoader:
        return TensorLoader(data, 4, shuffle=False, seed=5, transform=CropFlip(2))

    first, second = list(loader := epoch()), list(loader)
    assert torch.equal(first[0]["input"], next(iter(epoch()))["input"])
    assert not torch.equal(first[0]["input"], second[0]["input"])
    assert torch.equal(first[0]["input"], CropFlip(2).images(data["input"][:4], first[0]["view"]))


def test_a_batch_without_views_is_refused() -> None:
    with pytest.raises(UserError, match=r"TensorLoader\(transform=\.\.\.\)"):
        CropFlip()({"input": torch.rand(1, 1, 4, 4), "id": torch.arange(1)})
