from __future__ import annotations

import pytest
import torch

from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.masking import PatchNoise
from limbeck.errors import UserError

DATA = {"input": torch.randn(40, 1, 8, 8), "id": torch.arange(40) + 5}


def test_the_noise_of_an_image_is_a_permutation_that_its_view_decides() -> None:
    transform = PatchNoise(16)
    view = torch.tensor([3, 7, 3, -2])
    noise = transform.noise(view)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(transform.noise(view[1:2])[0], noise[1])
    assert (noise.sort(1).values * 16).round().tolist() == [list(range(16))] * 4


def test_every_patch_is_seen_about_equally_often() -> None:
    noise = PatchNoise(16).noise(torch.arange(4000))
    share = (noise < 0.25).float().mean(0)
    assert float((share - 0.25).abs().max()) < 0.03


def test_a_batch_holds_what_masked_networks_are_called_with() -> None:
    loader = TensorLoader(DATA, 10, transform=PatchNoise(16, before=CropFlip(2)))
    plain = TensorLoader(DATA, 10, transform=CropFlip(2))
    batch, moved = loader.peek(), plain.peek()
    assert set(batch["input"]) == {"pixel_values", "noise"}
    assert torch.equal(batch["input"]["pixel_values"], moved["input"])
    assert batch["input"]["noise"].shape == (10, 16)
    # Another epoch, another mask; the same epoch, the same one.
    assert torch.equal(loader.peek()["input"]["noise"], batch["input"]["noise"])
    loader.set_epoch(1)
    by_id = {int(i): n for i, n in zip(batch["id"], batch["input"]["noise"])}
    later = {int(i): n for other in loader for i, n in zip(other["id"], other["input"]["noise"])}
    assert all(not torch.equal(by_id[i], later[i]) for i in by_id)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UserError, match="view seeds"):
        PatchNoise(16)(DATA)
    with pytest.raises(UserError, match="patches"):
        PatchNoise(0)
