"""Nearest neighbours among patches."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.patch_memory import PatchMemory

GENERATOR = torch.Generator().manual_seed(0)
GOOD = {"a": torch.randn(4, 3, 8, 8, generator=GENERATOR), "b": torch.randn(4, 5, 4, 4, generator=GENERATOR)}


def test_what_was_remembered_is_at_distance_zero() -> None:
    memory = PatchMemory(("a", "b"), size=10_000).fit(GOOD)
    found = memory.predict(GOOD)
    assert found.shape == (4, 8, 8)
    assert float(found.max()) < 1e-2


def test_a_changed_patch_stands_out_where_it_is() -> None:
    memory = PatchMemory(("a",)).fit(GOOD)
    changed = {"a": GOOD["a"][:1].clone()}
    changed["a"][0, :, 2, 5] += 20
    found = memory.predict(changed)[0]
    assert tuple(divmod(int(found.argmax()), 8)) in {(row, column) for row in (1, 2, 3) for column in (4, 5, 6)}
    assert float(found[6, 1]) < 1e-2


def test_a_smaller_memory_is_a_seeded_part() -> None:
    first, again, other = (PatchMemory(("a",), size=20, seed=seed).fit(GOOD).memory_ for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (20, 3)


def test_nothing_to_remember_is_refused() -> None:
    with pytest.raises(UserError, match="levels"):
        PatchMemory(())
