"""Hard negatives: never a positive, likelier the harder, and no row that breaks the draw."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.negatives import draw_negatives


def test_no_row_draws_its_own_id() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([0, 1, 0, 2, 2, 3])
    # What may not be drawn looks best.
    scores = 20.0 * (ids[:, None] == ids).float()
    for _ in range(50):
        drawn = draw_negatives(scores, ids)
        assert drawn.found.all()
        assert not (ids[drawn.column] == ids).any()


def test_draws_follow_the_softmax_of_what_is_left() -> None:
    scores = torch.tensor([[9.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    drawn = draw_negatives(
        scores, torch.zeros(4000, dtype=torch.int64), torch.arange(4), generator=torch.Generator().manual_seed(0)
    )
    shares = torch.bincount(drawn.column, minlength=4).double() / 4000
    expected = torch.tensor([1.0, 0.0, -1.0]).softmax(0).double()
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], expected, atol=0.03, rtol=0)


def test_uniform_draws_ignore_the_scores() -> None:
    scores = torch.tensor([[0.0, 50.0, 0.0]]).expand(3000, 3)
    drawn = draw_negatives(scores, torch.zeros(3000, dtype=torch.int64), torch.arange(3), uniform=True)
    assert torch.bincount(drawn.column, minlength=3)[1:].min() > 1300


def test_a_row_of_duplicates_does_not_break_the_draw() -> None:
    drawn = draw_negatives(torch.randn(3, 3), torch.tensor([5, 5, 5]))
    assert not drawn.found.any()
    assert drawn.column.tolist() == [0, 1, 2]
    some = draw_negatives(torch.randn(3, 3), torch.tensor([5, 5, 6]))
    assert some.found.all()


def test_a_duplicate_that_holds_all_the_weight_leaves_a_draw() -> None:
    # Weights zeroed after the softmax, as in the released code, would all underflow here.
    scores = torch.tensor([[0.0, 1e4, -1e4], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    drawn = draw_negatives(scores, torch.tensor([1, 1, 2]))
    assert drawn.column[:2].tolist() == [2, 2]


def test_a_seed_repeats_the_draw() -> None:
    scores = torch.randn(40, 40)
    one, other = (draw_negatives(scores, generator=torch.Generator().manual_seed(7)).column for _ in range(2))
    assert torch.equal(one, other)


def test_ids_must_fit() -> None:
    with pytest.raises(UserError, match="ids"):
        draw_negatives(torch.randn(3, 4), torch.arange(3))
