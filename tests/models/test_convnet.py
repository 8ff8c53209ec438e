"""ConvNet: shapes, instance norm, pixels in [0, 1]."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.convnet import ConvNet
from limbeck.taps import Taps


def test_the_published_size() -> None:
    network = ConvNet(10, 3, 32)
    assert network.head.in_features == 2048
    assert sum(one.numel() for one in network.parameters()) == 320_010


def test_features_are_what_the_head_sees_and_know_no_other_image() -> None:
    network, images = ConvNet(4, 1, 16, depth=2, width=8), torch.rand(3, 1, 16, 16)
    taps = Taps(network, {"features": "head:input"})
    with taps.capture() as signals:
        network(images)
    torch.testing.assert_close(signals["features"], network.features(images))
    torch.testing.assert_close(network.train()(images)[:1], network(images[:1]))


def test_the_first_layer_standardises_pixels() -> None:
    network = ConvNet(2, 2, 4, depth=1, width=4, mean=(0.2, 0.6), deviation=(0.1, 0.5))
    images = torch.rand(2, 2, 4, 4)
    plain = ConvNet(2, 2, 4, depth=1, width=4, mean=(0.0, 0.0), deviation=(1.0, 1.0))
    plain.load_state_dict(network.state_dict())
    mean, deviation = torch.tensor([0.2, 0.6]).view(1, 2, 1, 1), torch.tensor([0.1, 0.5]).view(1, 2, 1, 1)
    torch.testing.assert_close(network(images), plain((images - mean) / deviation))


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="depth: given 5"):
        ConvNet(10, 1, 16, depth=5)
