"""The ImageNet backbone of a registry: whole, readable without pickled code, and right about photos."""

from __future__ import annotations

import torch

from limbeck.data.artefacts import fetch
from limbeck.models import imagenet
from limbeck.testbeds.anomaly import photos_recognised


def test_it_names_two_photos_rightly_with_its_own_preprocessing() -> None:
    assert photos_recognised() == 1.0


def test_the_preprocessing_matters() -> None:
    photo = imagenet.FORMAT([str(fetch("scikit-image-photos") / "chelsea.png")])
    pair = torch.cat([photo, photo.flip(1) * 3 + 4])
    right, wrong = imagenet.mobilenet_v2()(pair).softmax(-1)[:, 281:286].sum(1)
    assert float(right) > 0.9 > float(wrong) + 0.2


def test_taps_and_frozen_weights() -> None:
    model = imagenet.mobilenet_v2()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_504_872
    assert not model.training
