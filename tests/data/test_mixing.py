"""CutMix: shares of pixels are shares of labels."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.mixing import Chain, CutMix
from limbeck.errors import UserError


def batch(seed: int, count: int = 10) -> dict[str, torch.Tensor]:
    # Every picture is filled with its own class.
    target = torch.arange(count)
    view = torch.randint(2**60, (count,), generator=torch.Generator().manual_seed(seed))
    return {"input": target.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8), "target": target, "view": view}


def test_labels_are_mixed_by_the_pixels() -> None:
    mixed_any = False
    for seed in range(20):
        mixed = CutMix(10, probability=1.0)(batch(seed))
        for picture, label in zip(mixed["input"], mixed["target"]):
            shares = torch.bincount(picture.long().flatten(), minlength=10) / 64
            torch.testing.assert_close(label, shares)
        mixed_any |= bool((mixed["target"].max(dim=-1).values < 1).any())
    assert mixed_any


def test_it_mixes_as_often_as_asked_and_replays() -> None:
    changed = sum(not torch.equal(CutMix(10)(batch(seed))["input"], batch(seed)["input"]) for seed in range(200))
    assert 60 < changed < 120  # half, less the empty rectangles
    never = CutMix(10, probability=0.0)(batch(0))
    assert torch.equal(never["target"], torch.eye(10))
    assert torch.equal(CutMix(10)(batch(3))["input"], CutMix(10)(batch(3))["input"])


def test_soft_labels_stay_soft() -> None:
    given = batch(1) | {"target": torch.full((10, 10), 0.1)}
    torch.testing.assert_close(CutMix(10, probability=1.0)(given)["target"], given["target"])


def test_a_chain_applies_in_order() -> None:
    add, double = (lambda one: one | {"input": one["input"] + 1}), (lambda one: one | {"input": 2 * one["input"]})
    assert Chain(add, double)({"input": 1}) == {"input": 4}


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="probability"):
        CutMix(10, probability=2)
    with pytest.raises(UserError, match="beta"):
        CutMix(10, beta=0)
    with pytest.raises(UserError, match="view seeds"):
        CutMix(10)({"input": torch.zeros(1, 1, 2, 2), "target": torch.zeros(1).long()})
