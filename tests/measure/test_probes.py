from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.measure import linear_probe, neighbour_probe


def blobs(seed: int, count: int = 200, classes: int = 3, gap: float = 4.0) -> tuple[Tensor, Tensor]:
    """Classes that lie in different directions, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return 100 + torch.randn(count, 6, generator=generator) + gap * nn.functional.one_hot(labels, 6), labels


def test_separable_classes_are_read_and_noise_is_not() -> None:
    train, test, noise = blobs(0), blobs(1), blobs(2, gap=0.0)
    assert linear_probe(*train, *test)["accuracy"] > 0.95
    assert neighbour_probe(*train, *test) > 0.9
    assert linear_probe(*noise, *blobs(3, gap=0.0))["accuracy"] < 0.5
    assert neighbour_probe(*noise, *blobs(3, gap=0.0)) < 0.5


def test_scale_and_place_of_features_do_not_matter() -> None:
    train, test = blobs(0), blobs(1)
    moved = [(1e3 * (features - 7), labels) for features, labels in (train, test)]
    first, second = linear_probe(*train, *test), linear_probe(*moved[0], *moved[1])
    assert first["accuracy"] == second["accuracy"]
    assert first["nll"] == pytest.approx(second["nll"], abs=1e-3)
    assert neighbour_probe(*train, *test) == neighbour_probe(*moved[0], *moved[1])


def test_a_constant_feature_and_two_classes_are_no_trouble() -> None:
    (train, labels), (test, truth) = blobs(0, classes=2), blobs(1, classes=2)
    train[:, 5] = test[:, 5] = 3.0
    assert linear_probe(train, labels, test, truth)["accuracy"] > 0.95


def test_the_vote_is_weighted_by_cosine() -> None:
    train = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]])
    # One near neighbour outvotes two that are far.
    assert neighbour_probe(train, labels, test, torch.tensor([0]), neighbours=3) == 1.0
    assert neighbour_probe(train, labels, test, torch.tensor([0]), neighbours=3, temperature=1e3) == 0.0


def test_what_does_not_fit_is_refused() -> None:
    train, test = blobs(0), blobs(1)
    for given, key in (
        ((train[0], train[1][:5], *test), "train features"),
        ((*train, test[0][:, :2], test[1]), "test features"),
        ((train[0], torch.zeros(200).long(), *test), "labels"),
    ):
        with pytest.raises(UserError, match=key):
            linear_probe(*given)
