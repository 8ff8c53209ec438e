"""Thumbnails: images, networks, pool and gate."""

from __future__ import annotations

import pytest
import torch

from limbeck.testbeds import load
from limbeck.testbeds.thumbnails import Thumbnails


def bed(regime: str) -> Thumbnails:
    made = load(f"thumbnails:{regime}", "smoke")
    assert isinstance(made, Thumbnails)
    return made


@pytest.mark.parametrize(("regime", "channels"), [("plain", 1), ("cifar10", 3)])
def test_images_are_small_in_unit_range_and_disjoint(regime: str, channels: int) -> None:
    splits = bed(regime).splits(3)
    parts = [splits.train, splits.validation, splits.test]
    for part in parts:
        assert isinstance(part.input, torch.Tensor)
        assert part.input.shape[1:] == (channels, 16, 16)
        assert 0 <= float(part.input.min()) < float(part.input.max()) <= 1
    ids = [one for part in parts for one in part.id.tolist()]
    assert len(ids) == len(set(ids))


def test_a_thumbnail_is_the_mean_of_four_pixels() -> None:
    made = bed("plain")
    split = made.splits().train
    pixels = made._origin.pools()[0].images[split.id[:5]].float() / 255
    assert isinstance(split.input, torch.Tensor)
    torch.testing.assert_close(split.input[:5].sum(dim=(1, 2, 3)), pixels.sum(dim=(1, 2, 3)) / 4)


def test_pool_teacher_features_and_gate_at_smoke_size() -> None:
    made = bed("plain")
    assert made.gate().passed
    pool, test = made.experts(), made.splits().test
    assert len(pool) == 2
    assert made.features(test).shape == (200, 256)
    images = test.input[:4]  # type: ignore[index]
    members = torch.stack([pool.trained(number)(images).softmax(-1).clone() for number in range(2)])
    torch.testing.assert_close(made.teacher()(images).exp(), members.mean(0))
    assert set(made.network_makers()) == {"convnet", "cnn"}
    assert torch.equal(made.student(1).head.weight, made.student(1).head.weight)  # type: ignore[union-attr]
