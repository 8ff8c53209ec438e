"""Scaling: exact inverses, buckets, and every odd tensor."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.quantization import Scaling

KINDS = ["linear", "absmax", "absnorm"]
ODD = {
    "short": torch.tensor([3.0, -1.0, 2.0]),
    "one": torch.tensor([0.7]),
    "constant": torch.full((300,), -0.3),
    "zero": torch.zeros(5),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
    "whole buckets": torch.arange(512.0),
    "channels last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 1, 7, 256])
@pytest.mark.parametrize("name", ODD)
def test_scaling_and_back(kind: str, size: int | None, name: str) -> None:
    scaled = Scaling(kind, size)(ODD[name])
    torch.testing.assert_close(scaled.restore(), ODD[name], rtol=1e-6, atol=1e-6)
    assert scaled.restore().shape == ODD[name].shape
    lowest = 0 if kind == "linear" else -1
    assert bool(((scaled.values >= lowest) & (scaled.values <= 1 + 1e-6)).all())


def test_a_bucket_is_scaled_by_its_own_values_and_the_last_is_filled_with_the_last() -> None:
    scaled = Scaling("linear", 4)(torch.tensor([0.0, 1.0, 2.0, 4.0, 10.0, 30.0]))
    assert scaled.values.tolist() == [[0, 0.25, 0.5, 1], [0, 1, 1, 1]]
    assert scaled.scale.tolist() == [[4], [20]]
    assert scaled.offset is not None
    assert scaled.offset.tolist() == [[0], [10]]


def test_the_kinds_by_hand() -> None:
    values = torch.tensor([3.0, -4.0, 0.0])
    assert Scaling("absmax")(values).values.tolist() == [[0.75, -1, 0]]
    torch.testing.assert_close(Scaling("absnorm")(values).values, torch.tensor([[0.6, -0.8, 0]]))
    # The filling of a short last bucket is no part of its norm.
    assert Scaling("absnorm", 2)(torch.tensor([3.0, 4.0, 2.0])).scale.tolist() == [[5], [2]]


def test_a_constant_bucket_keeps_its_value() -> None:
    scaled = Scaling()(torch.full((4,), 0.1))
    assert scaled.scale.tolist() == [[1]]
    assert not scaled.values.any()
    assert torch.equal(scaled.restore(), torch.full((4,), 0.1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_refused(bad: float, kind: str) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        Scaling(kind)(torch.tensor([1.0, bad, 2.0]))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="linear"):
        Scaling("linaer")
    with pytest.raises(UserError, match="bucket_size"):
        Scaling(bucket_size=0)
    with pytest.raises(UserError, match="int64"):
        Scaling()(torch.arange(4))


def test_half_types_are_scaled_in_single_precision() -> None:
    scaled = Scaling()(torch.tensor([0.0, 1.0, 3.0], dtype=torch.bfloat16))
    assert scaled.values.dtype == torch.float32
