from __future__ import annotations

import pytest
import torch

from limbeck.models import mobile_sam
from limbeck.testbeds import load
from limbeck.testbeds.sam_photos import MASK, SIDE, SAMPhotos, run, silhouettes


@pytest.fixture(scope="module")
def bed() -> SAMPhotos:
    return load("sam_photos", "smoke")  # type: ignore[return-value]


def test_photos_fill_one_side_and_are_padded_to_the_other(bed: SAMPhotos) -> None:
    train = bed.splits().train
    assert torch.as_tensor(train.input).shape == (6, 3, SIDE, SIDE)
    assert train.labels.amax(1).tolist() == [SIDE] * 6
    for image, (height, width) in zip(torch.as_tensor(train.input), train.labels.tolist()):
        outside = torch.cat([image[:, height:].flatten(1), image[:, :, width:].flatten(1)], 1)
        assert outside.shape[1] == 0 or int((outside - outside[:, :1]).abs().max()) == 0
        # What SAM pads with, behind its normalisation, is zero.
        assert float(mobile_sam.normalise(outside[:, :, None]).abs().max() if outside.shape[1] else 0) < 0.01


def test_no_photo_is_like_another(bed: SAMPhotos) -> None:
    splits = bed.splits()
    images = torch.cat([torch.as_tensor(part.input) for part in (splits.train, splits.validation, splits.test)])
    small = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 16).flatten(1)
    small = torch.nn.functional.normalize(small - small.mean(1, keepdim=True))
    assert float((small @ small.T - torch.eye(len(small))).max()) < 0.985


def test_objects_are_found_and_are_neither_specks_nor_the_whole(bed: SAMPhotos) -> None:
    objects = bed.objects("train")
    found = objects.flatten(2).any(2)
    assert int(found.sum()) >= 3
    share = objects[found].flatten(1).double().mean(1)
    assert float(share.min()) > 0.003
    assert float(share.max()) < 0.6


def test_silhouettes_of_white_grounds_alone() -> None:
    images = torch.full((2, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    images[0, :, 80:160, 100:200] = 20
    images[0, :, 100:120, 140:160] = 255  # a hole is filled
    images[1] = torch.randint(0, 200, (3, SIDE, SIDE), dtype=torch.uint8)
    found = silhouettes(images)
    assert found[0].sum() == 20 * 25
    assert bool(found[0, 20:40, 25:50].all())
    assert not found[1].any()
    assert found.shape == (2, MASK, MASK)


def test_the_student_is_a_trunk_and_a_head(bed: SAMPhotos) -> None:
    student, train = bed.student(0), bed.splits().train
    with torch.no_grad():
        whole = run(student, torch.as_tensor(train.input)[:2])
        parts = student.head(bed.trunk_maps()[:2])
    assert whole.shape == (2, 256, 20, 20)
    # The stored maps are in half precision.
    torch.testing.assert_close(whole, parts, rtol=2e-2, atol=2e-2)
    trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert trainable < 0.2 * sum(parameter.numel() for parameter in student.parameters())
