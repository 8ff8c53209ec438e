from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.signals import Batch, Signals
from limbeck.sources import Continued, Table


def rest(module: nn.Module, signals: Signals, batch: Batch) -> dict[str, Tensor]:
    stored: Any = signals["embedding"]
    return {"answer": module(stored + batch["input"])}


@pytest.fixture
def source() -> Continued:
    torch.manual_seed(0)
    return Continued(Table(torch.arange(5), {"embedding": torch.randn(5, 3)}), nn.Linear(3, 2), rest)


def test_the_head_goes_on_from_what_is_stored_and_follows_the_batch(source: Continued) -> None:
    batch = {"id": torch.tensor([3, 1]), "input": torch.ones(2, 3)}
    stored = source.first(batch)["embedding"]
    found = source(batch, ("answer",))
    assert set(found) == {"answer"}
    torch.testing.assert_close(found["answer"], source.module(stored + 1))
    other = source({**batch, "input": torch.zeros(2, 3)})
    torch.testing.assert_close(other["answer"], source.module(stored))
    assert set(other) == {"embedding", "answer"}


def test_it_is_frozen_and_known_by_both_parts(source: Continued) -> None:
    batch = {"id": torch.tensor([0]), "input": torch.zeros(1, 3)}
    assert not source(batch)["answer"].requires_grad
    assert not source.module.training
    assert source.modules() == [source.module]
    before = source.fingerprint()
    with torch.no_grad():
        source.module.weight.add_(1)
    assert source.fingerprint() != before
    again = Continued(Table(torch.arange(1), {"embedding": torch.zeros(1, 3)}), source.module, rest)
    assert again.fingerprint() != source.fingerprint()


def test_what_is_not_answered_is_named(source: Continued) -> None:
    with pytest.raises(UserError, match="answer"):
        source({"id": torch.tensor([0]), "input": torch.zeros(1, 3)}, ("mask",))
