from __future__ import annotations

import torch

from limbeck.testbeds.cifar10 import CIFAR10


def test_the_data_set_is_whole() -> None:
    training, test = CIFAR10().pools()
    assert training.images.shape == (50000, 3, 32, 32)
    assert torch.bincount(training.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10


def test_the_published_teacher_is_read_right_and_wants_plain_pixels() -> None:
    testbed = CIFAR10(size="smoke")
    test, teacher = testbed.splits().test, testbed.teacher()
    accuracy = testbed.evaluate(teacher, test)["accuracy"]
    assert 0.92 < accuracy < 0.97, "the catalogue measured 94.8% on 600 images"
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 855770
    assert float(test.input.min()) == 0.0
    assert float(test.input.max()) == 1.0
