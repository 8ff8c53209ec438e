from __future__ import annotations

import pytest
import torch

from limbeck import testbeds
from limbeck.testbeds.gaussian_mixture import CLASSES, GaussianMixture


@pytest.fixture(scope="module")
def bed() -> GaussianMixture:
    made = testbeds.load("gaussian_mixture", "smoke")
    assert isinstance(made, GaussianMixture)
    return made


def test_classes_have_two_opposite_components_and_samples_lie_on_them(bed: GaussianMixture) -> None:
    exact, split = bed.exact(), bed.splits().test
    assert exact.null == bed.null == CLASSES
    for k in range(CLASSES):
        torch.testing.assert_close(exact.means[exact.classes == k].sum(0), torch.zeros(2), atol=1e-6, rtol=0)
    nearest = torch.cdist(torch.as_tensor(split.input), exact.means).argmin(1)
    assert float((exact.classes[nearest] == split.labels).float().mean()) > 0.99


def test_true_samples_are_judged_better_than_collapsed_or_shifted_ones(bed: GaussianMixture) -> None:
    split = bed.splits().validation
    points, labels = torch.as_tensor(split.input), split.labels
    judged = bed.judge(points, labels)
    assert judged["score_gap"] < 0.01
    assert judged["coverage"] == 1.0
    assert judged["diversity"] == pytest.approx(1.0, abs=0.05)
    collapsed = bed.judge(bed.exact().means[labels] + 0.01 * points, labels)
    assert collapsed["coverage"] == 0.5
    assert collapsed["diversity"] < 0.1
    assert collapsed["score_gap"] > 10 * judged["score_gap"]
    wrong = bed.judge(points, (labels + 1) % CLASSES)
    assert wrong["conditional_accuracy"] < 0.02


def test_the_trained_network_is_nearer_to_the_exact_score_than_a_fresh_one(bed: GaussianMixture) -> None:
    split = bed.splits().validation
    assert bed.evaluate(bed.trained(), split)["loss"] < 0.7 * bed.evaluate(bed.student(), split)["loss"]
    assert bed.gate().passed
