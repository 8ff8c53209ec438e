from __future__ import annotations

import pytest
import torch

from limbeck.testbeds import load
from limbeck.testbeds.small_diffusion import PIXELS, SmallDiffusion, _small


@pytest.fixture(scope="module")
def bed() -> SmallDiffusion:
    return load("small_diffusion", "smoke")  # type: ignore[return-value]


def test_images_keep_their_brightness_and_borders(bed: SmallDiffusion) -> None:
    whole = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    small = _small(whole)
    assert small.shape == (1, 1, PIXELS, PIXELS)
    assert float(small.max()) == 1
    assert small[0, 0, 0].tolist() == [-1.0] * PIXELS
    split = bed.splits().test
    assert torch.as_tensor(split.input).shape == (1000, 1, PIXELS, PIXELS)
    assert float(torch.as_tensor(split.input).min()) == -1


def test_splits_are_disjoint(bed: SmallDiffusion) -> None:
    splits = bed.splits()
    ids = [set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not ids[0] & ids[1]
    assert not (ids[0] | ids[1]) & ids[2]


def test_the_teacher_is_kept_frozen_and_better_than_a_fresh_network(bed: SmallDiffusion) -> None:
    teacher = bed.teacher()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    again = bed.teacher()
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), again.parameters(), strict=True))
    split = bed.splits().validation.subset(range(200))
    assert bed.evaluate(teacher, split)["loss"] < 0.6 * bed.evaluate(bed.student(), split)["loss"]


def test_the_noise_is_a_function_of_the_seed_and_the_classes_are_even(bed: SmallDiffusion) -> None:
    noise, labels = bed.noise(40, 3)
    assert torch.equal(noise, bed.noise(40, 3)[0])
    assert not torch.equal(noise, bed.noise(40, 4)[0])
    assert labels.bincount().tolist() == [4] * 10


def test_real_images_are_judged_better_than_damaged_ones(bed: SmallDiffusion) -> None:
    split = bed.splits().validation.subset(range(300))
    images = torch.as_tensor(split.input)
    good = bed.judge(images, split.labels)
    noisy = bed.judge(
        images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)), split.labels
    )
    one_class = bed.judge(images[split.labels == 1].repeat(20, 1, 1, 1)[:300], split.labels)
    assert good["fid"] < 0.5 * noisy["fid"]
    assert good["conditional_accuracy"] > 0.6
    assert noisy["high_band"] > 1.2 > good["high_band"] > 0.8
    assert good["recall"] > one_class["recall"] + 0.3
    assert good["diversity"] == pytest.approx(1, abs=0.1)


def test_samples_and_gate(bed: SmallDiffusion) -> None:
    images, labels = bed.sample(bed.teacher(), 10, steps=4)
    assert images.shape == (10, *bed.shape)
    assert torch.equal(images, bed.sample(bed.teacher(), 10, steps=4)[0])
    assert labels.tolist() == list(range(10))
    gate = bed.gate()
    assert {check.name for check in gate.checks} == {"conditional_accuracy", "classifier_accuracy"}
