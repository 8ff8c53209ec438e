"""The same tokens at different places: what is compared, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.losses import forward_kl, selected_tokens
from limbeck.signals import SparseLogits


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).bool()
TEACHER = torch.tensor([[0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()


def test_the_kth_counted_token_meets_the_kth() -> None:
    ours, theirs = logits(2, 4, 5), logits(2, 6, 5, seed=1)
    student, teacher = selected_tokens(ours, STUDENT, theirs, TEACHER)
    expected = sum(
        functional.kl_div(a.log_softmax(0), b.log_softmax(0), log_target=True, reduction="sum")
        for a, b in ((ours[0, 1], theirs[0, 3]), (ours[0, 2], theirs[0, 5]), (ours[1, 0], theirs[1, 2]))
    )
    torch.testing.assert_close(forward_kl(student, teacher), expected / 3)


def test_uncounted_places_may_hold_anything_and_get_no_gradient() -> None:
    ours, theirs = logits(2, 4, 5), logits(2, 6, 5, seed=1)
    ours[~STUDENT], theirs[~TEACHER] = torch.nan, torch.inf
    ours.requires_grad_()
    loss = forward_kl(*selected_tokens(ours, STUDENT, theirs, TEACHER))
    loss.backward()
    assert bool(loss.isfinite())
    assert ours.grad is not None
    assert float(ours.grad[~STUDENT].abs().max()) == 0.0


def test_sparse_teachers_are_picked_too() -> None:
    theirs = logits(2, 6, 5, seed=1)
    sparse = SparseLogits.from_dense(theirs, 2)
    _, found = selected_tokens(logits(2, 4, 5), STUDENT, sparse, TEACHER)
    torch.testing.assert_close(found.to_dense(), SparseLogits.from_dense(theirs[TEACHER], 2).to_dense())


def test_equal_totals_with_other_counts_per_sample_are_refused() -> None:
    moved = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
    assert int(moved.sum()) == int(STUDENT.sum())
    with pytest.raises(UserError, match="tokens of sample 0"):
        selected_tokens(logits(2, 4, 5), STUDENT, logits(2, 6, 5), moved)


@pytest.mark.parametrize(("name", "mask"), [("student_mask", STUDENT.long()), ("student_mask", STUDENT[:, :3])])
def test_masks_that_do_not_fit_are_refused(name: str, mask: torch.Tensor) -> None:
    with pytest.raises(UserError, match=name):
        selected_tokens(logits(2, 4, 5), mask, logits(2, 6, 5), TEACHER)
