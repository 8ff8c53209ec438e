from __future__ import annotations

import torch

from limbeck.testbeds.fashion_mnist import FashionMNIST


def test_the_data_set_is_whole() -> None:
    training, test = FashionMNIST().pools()
    assert training.images.shape == (60000, 1, 28, 28)
    assert torch.bincount(training.labels).tolist() == [6000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    # The first training image is the published one: an ankle boot.
    assert int(training.labels[0]) == 9
    assert int(training.images[0].sum()) == 76247


def test_many_classes_turns_and_inverts_as_the_label_says() -> None:
    plain, many = (FashionMNIST(regime, size="full") for regime in ("plain", "many_classes"))
    turned = many.splits().validation
    upright = plain.splits().validation
    assert torch.equal(turned.id, upright.id)
    for image, original, label, clothing in zip(
        turned.input, upright.input, turned.labels.tolist(), upright.labels.tolist(), strict=True
    ):
        assert label // 8 == clothing
        expected = torch.rot90(original, label % 8 // 2, (1, 2))
        if label % 2:
            # In pixels from 0 to 1 inversion is 1 - x.
            expected = (1 - (expected * 0.353 + 0.286) - 0.286) / 0.353
        torch.testing.assert_close(image, expected)
    counts = torch.bincount(many.splits().train.labels, minlength=80)
    assert len(counts) == 80
    assert counts.min() > 150
    assert counts.max() < 350
