from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from limbeck.errors import UserError
from limbeck.measure import generation


def normal(count: int, size: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_by_matrix_root() -> None:
    ours, theirs = normal(200) * torch.tensor([1.0, 2, 3, 1, 1]) + 1, normal(300, seed=1)
    first, second = (np.cov(part.double().numpy().T) for part in (ours, theirs))
    root = linalg.sqrtm(first @ second).real
    wanted = float((ours.double().mean(0) - theirs.double().mean(0)).square().sum()) + np.trace(
        first + second - 2 * root
    )
    assert generation.frechet_distance(ours, theirs) == pytest.approx(wanted, rel=1e-6)
    assert generation.frechet_distance(ours, ours) == pytest.approx(0, abs=1e-8)
    with pytest.raises(UserError):
        generation.frechet_distance(ours[:1], theirs)


def test_frechet_distance_of_fewer_samples_than_features() -> None:
    assert np.isfinite(generation.frechet_distance(normal(4, 10), normal(50, 10, 1)))


def test_precision_falls_outside_and_recall_where_modes_are_missing() -> None:
    real = torch.cat([normal(100), normal(100, seed=1) + 50])
    assert generation.precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}
    collapsed = generation.precision_recall(normal(200, seed=2), real)
    assert collapsed["precision"] > 0.7
    assert collapsed["recall"] <= 0.5
    scattered = generation.precision_recall(torch.cat([real[:100], normal(100, seed=3) + 500]), real)
    assert scattered["precision"] == pytest.approx(0.5)
    with pytest.raises(UserError):
        generation.precision_recall(real[:3], real)


def test_within_class_distance_ignores_other_classes() -> None:
    features = torch.tensor([[0.0], [2.0], [100.0], [104.0], [999.0]])
    assert generation.within_class_distance(features, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(3.0)
    with pytest.raises(UserError):
        generation.within_class_distance(features[:1], torch.tensor([0]))


def test_high_band_power_is_parsevals_share() -> None:
    images = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    centred = images - images.mean((2, 3), keepdim=True)
    assert generation.high_band_power(images, 0.0) == pytest.approx(
        float(centred.double().square().mean((2, 3)).mean()), rel=1e-6
    )
    checks = torch.tensor([1.0, -1.0]).repeat(8)[None, None, None] * torch.ones(1, 1, 16, 1)
    assert generation.high_band_power(checks) == pytest.approx(1.0)
    assert generation.high_band_power(torch.nn.functional.avg_pool2d(images, 3, 1, 1)) < generation.high_band_power(
        images
    )


def test_psnr_by_hand() -> None:
    black, grey = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.2)
    assert generation.psnr(grey, black) == pytest.approx(20.0)
    assert generation.psnr(black, black) == pytest.approx(100.0)
    with pytest.raises(UserError):
        generation.psnr(black, black[:1])
