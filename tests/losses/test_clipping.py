"""Clipped KL against sums in double precision, class by class, and the invariants of every loss."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import clipped_kl, forward_kl, kept_mass, ranked_classes, window
from limbeck.signals import SparseLogits

from . import invariants as check

STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
SOFT = {"lower": 0.1, "upper": 0.8, "softness": 0.05}
LOSSES = {
    "top-k": partial(clipped_kl, k=3),
    "nucleus": partial(clipped_kl, upper=0.8),
    "band": partial(clipped_kl, lower=0.3, upper=0.9),
    "soft": partial(clipped_kl, **SOFT),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def by_hand(student, teacher, *, lower=0.0, upper=1.0, k=512, softness=0.0, label=None):
    """One row, in plain Python."""
    p = [math.exp(v) for v in teacher]
    p = [v / math.fsum(p) for v in p]
    q = [math.exp(v) for v in student]
    q = [v / math.fsum(q) for v in q]
    order = sorted(range(len(p)), key=lambda c: -p[c])[:k]
    if label is not None and label not in order:
        order[-1] = label
    weights, before = {}, 0.0
    for place, c in enumerate(order):
        upto = before + p[c]
        if softness:
            m = 1 / (1 + math.exp(-(upto - lower) / softness)) / (1 + math.exp(-(upper - before) / softness))
        else:
            m = float(upto > lower and before < upper)
        weights[c] = 1.0 if place == 0 or c == label else m
        before = upto
    mass_p, mass_q = (math.fsum(weights[c] * x[c] for c in order) for x in (p, q))
    return math.fsum(
        weights[c] * p[c] / mass_p * math.log((p[c] / mass_p) / (q[c] / mass_q)) for c in order if weights[c] > 0
    )


@pytest.mark.parametrize(
    "options",
    [{"k": 3}, {"upper": 0.8}, {"lower": 0.3, "upper": 0.9}, SOFT, {**SOFT, "k": 4}],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_agrees_with_plain_sums(options, labelled):
    label = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1]) if labelled else None
    got = clipped_kl(STUDENT, TEACHER, **options, label=label, reduction="none")
    want = [
        by_hand(s, t, **options, label=int(label[row]) if labelled else None)
        for row, (s, t) in enumerate(zip(STUDENT.tolist(), TEACHER.tolist(), strict=True))
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@every_loss
def test_invariants(loss):
    check.check_contract(loss, STUDENT, TEACHER)
    check.check_gradient(loss, STUDENT, TEACHER)
    check.check_zero_at_match(loss, STUDENT, STUDENT.clone())
    check.check_shift(loss, STUDENT, TEACHER)
    check.check_leading_axes(loss, STUDENT, TEACHER)
    check.check_half(loss, *check.extreme_logits())


def test_gradients_reach_soft_bounds_and_not_hard_ones():
    lower = torch.full((8,), 0.2, dtype=torch.float64, requires_grad=True)
    upper = torch.full((8,), 0.7, dtype=torch.float64, requires_grad=True)

    def of_bounds(low, high):
        return clipped_kl(STUDENT, TEACHER, lower=low, upper=high, softness=0.1, reduction="none")

    assert torch.autograd.gradcheck(of_bounds, (lower, upper))
    low, high = torch.autograd.grad(of_bounds(lower, upper).sum(), (lower, upper))
    assert (low != 0).any()
    assert (high != 0).any()


def test_bounds_of_masked_rows_may_be_anything():
    mask = torch.arange(8) != 2
    lower = torch.full((8,), 0.2, dtype=torch.float64)
    lower[2] = float("nan")
    lower.requires_grad_(True)
    value = clipped_kl(STUDENT, TEACHER, lower=lower, softness=0.1, mask=mask)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, lower)[0]).all()


def test_a_nucleus_is_the_smallest_set_with_its_mass():
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    ranked = ranked_classes(teacher, 4)
    kept = window(ranked, 0.0, 0.8).exp()
    assert kept.tolist() == [[1, 1, 0, 0]]
    assert window(ranked, 0.0, 0.81).exp().tolist() == [[1, 1, 1, 0]]
    torch.testing.assert_close(kept_mass(ranked, kept.log()), torch.tensor([0.8], dtype=torch.float64))
    # The first class and the label are in every window.
    ranked = ranked_classes(teacher, 2, label=torch.tensor([3]))
    assert ranked.indices.tolist() == [[0, 3]]
    assert window(ranked, 0.9, 0.95).exp().tolist() == [[1, 1]]


def test_a_sparse_teacher_gives_the_same_on_what_it_kept():
    log_probs = TEACHER.log_softmax(-1)
    values, indices = log_probs.topk(4)
    sparse = SparseLogits(values, indices, torch.log1p(-values.exp().sum(-1)), 6)
    for options in ({"k": 4}, {"k": 4, "upper": 0.7}, {"k": 4, **SOFT}):
        torch.testing.assert_close(
            clipped_kl(STUDENT, sparse, **options, reduction="none"),
            clipped_kl(STUDENT, TEACHER, **options, reduction="none"),
        )


def test_all_classes_are_forward_kl():
    torch.testing.assert_close(clipped_kl(STUDENT, TEACHER, upper=2.0), forward_kl(STUDENT, TEACHER))


def test_ruled_out_classes_do_no_harm():
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[:, 3] = teacher[:, 3] = -torch.inf
    for loss in LOSSES.values():
        value, grad = check.gradient(loss, student, teacher)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("options", [{"k": 0}, {"softness": -0.1}])
def test_refuses(options):
    with pytest.raises(UserError):
        clipped_kl(STUDENT, TEACHER, **options)
    with pytest.raises(UserError):
        clipped_kl(STUDENT[:4], TEACHER)
