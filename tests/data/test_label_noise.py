from __future__ import annotations

import pytest
import torch

from limbeck.data.label_noise import flip_labels
from limbeck.errors import UserError

LABELS = torch.arange(3000) % 5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_exactly_the_share_changes_and_every_other_class_is_alike(share: float) -> None:
    flipped = flip_labels(LABELS, share, 5, seed=1)
    changed = flipped != LABELS
    assert int(changed.sum()) == round(3000 * share)
    assert torch.equal(LABELS, torch.arange(3000) % 5)
    if share:
        moved = torch.bincount((flipped - LABELS)[changed] % 5, minlength=5).double() / changed.sum()
        assert moved[0] == 0
        assert float((moved[1:] - 0.25).abs().max()) < 0.05


def test_the_seed_decides() -> None:
    assert torch.equal(flip_labels(LABELS, 0.3, 5, seed=1), flip_labels(LABELS, 0.3, 5, seed=1))
    assert not torch.equal(flip_labels(LABELS, 0.3, 5, seed=1), flip_labels(LABELS, 0.3, 5, seed=2))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UserError, match="share: given 1.5"):
        flip_labels(LABELS, 1.5, 5)
    with pytest.raises(UserError, match="classes"):
        flip_labels(torch.zeros(3, dtype=torch.int64), 0.5, 1)
    with pytest.raises(UserError, match="labels: given 0 to 4; allowed: 0 to 3"):
        flip_labels(LABELS, 0.5, 4)
