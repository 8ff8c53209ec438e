"""The span product against plain loops, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import span_product
from limbeck.signals import SparseLogits

from . import invariants as check

STUDENT, TEACHER = check.logits(6, 4, 7, seed=1), check.logits(6, 4, 7, seed=2)
LOSSES = {"whole": partial(span_product, k=None), "top-2": partial(span_product, k=2)}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def plain(student, teacher, k):
    """Pair by pair, class by class."""
    p, q = teacher.softmax(-1).tolist(), student.softmax(-1).tolist()
    found = []
    for ours, theirs in zip(q, p, strict=True):
        row = []
        for i in range(len(ours) - 1):
            ranked = [sorted(range(7), key=lambda c, at=theirs[j]: -at[c])[:k] for j in (i, i + 1)]
            union = set(ranked[0]) | set(ranked[1])
            row.append(sum((theirs[i][c] * theirs[i + 1][c] - ours[i][c] * ours[i + 1][c]) ** 2 for c in union))
        found.append(row)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_agrees_with_plain_loops(k):
    got = span_product(STUDENT, TEACHER, k=k, reduction="none")
    torch.testing.assert_close(got, plain(STUDENT, TEACHER, k), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(span_product(STUDENT, TEACHER, k=None, reduction="none"), plain(STUDENT, TEACHER, 7))


@every_loss
def test_invariants(loss):
    check.check_contract(loss, STUDENT, TEACHER)
    check.check_gradient(loss, STUDENT, TEACHER)
    check.check_zero_at_match(loss, STUDENT, STUDENT.clone())
    check.check_shift(loss, STUDENT, TEACHER)
    student, teacher = check.extreme_logits()
    check.check_half(loss, student.reshape(2, 4, -1), teacher.reshape(2, 4, -1))


def test_one_masked_pair_leaves_its_neighbours_alone():
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[:, 1] = False
    rows = span_product(STUDENT, TEACHER, mask=mask, reduction="none")
    whole = span_product(STUDENT, TEACHER, reduction="none")
    torch.testing.assert_close(rows[:, [0, 2]], whole[:, [0, 2]])
    assert (rows[:, 1] == 0).all()
    # A last position in no pair may hold anything.
    mask[:, 2] = False
    student = STUDENT.clone()
    student[:, 3] = float("nan")
    value, grad = check.gradient(span_product, student, TEACHER, mask=mask)
    torch.testing.assert_close(value, whole[:, 0].mean())
    assert torch.isfinite(grad).all()


def test_a_sparse_teacher_counts_zero_for_what_it_did_not_keep():
    values, indices = TEACHER.log_softmax(-1).topk(3)
    sparse = SparseLogits(values, indices, torch.log1p(-values.exp().sum(-1)), 7)
    kept = torch.zeros_like(TEACHER).scatter(-1, indices, values.exp())
    q = STUDENT.softmax(-1)
    union = (kept[:, 1:] > 0) | (kept[:, :-1] > 0)
    want = ((kept[:, 1:] * kept[:, :-1] - q[:, 1:] * q[:, :-1]).square() * union).sum(-1)
    torch.testing.assert_close(span_product(STUDENT, sparse, k=3, reduction="none"), want)


def test_refuses():
    with pytest.raises(UserError, match="L >= 2"):
        span_product(STUDENT[:, :1], TEACHER[:, :1])
    with pytest.raises(UserError, match="shape"):
        span_product(STUDENT, TEACHER[..., :6])
    with pytest.raises(UserError, match="k"):
        span_product(STUDENT, TEACHER, k=0)
