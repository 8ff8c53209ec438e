from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import (
    forward_kl,
    jensen_shannon,
    keep_top,
    reverse_kl,
    sampled_forward_kl,
    sampled_jensen_shannon,
    sampled_reverse_kl,
    token_log_probs,
)
from limbeck.signals import SparseLogits
from tests.losses.invariants import check_contract, check_gradient, check_half, check_zero_at_match, logits

CLASSES = 7
#: name -> (estimator, exact divergence, who samples).
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], str]] = {
    "forward": (sampled_forward_kl, forward_kl, "teacher"),
    "reverse": (sampled_reverse_kl, reverse_kl, "student"),
    "js_student": (partial(sampled_jensen_shannon, beta=0.3), partial(jensen_shannon, beta=0.3), "student"),
    "js_teacher": (
        partial(sampled_jensen_shannon, beta=0.3, samples="teacher"), partial(jensen_shannon, beta=0.3), "teacher",
    ),
}  # fmt: skip
SIDES = [(name, form) for name in CASES for form in ("k1", "k3")]


def pair(gap: float = 1.5) -> tuple[Tensor, Tensor]:
    return logits(CLASSES, seed=1, scale=gap), logits(CLASSES, seed=2, scale=gap)


def every_token(name: str, form: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate for each token that could be drawn, and its probability."""
    tokens = torch.arange(CLASSES)
    ours = token_log_probs(student.expand(CLASSES, -1), tokens)
    theirs = token_log_probs(teacher.expand(CLASSES, -1), tokens)
    estimate, _, who = CASES[name]
    drawn = (student if who == "student" else teacher).detach().softmax(-1)
    return estimate(ours, theirs, form=form, reduction="none"), drawn


@pytest.mark.parametrize(("name", "form"), SIDES)
def test_value_and_gradient_are_unbiased(name: str, form: str) -> None:
    student, teacher = pair()
    student.requires_grad_()
    values, drawn = every_token(name, form, student, teacher)
    mean = (values * drawn).sum()
    exact = CASES[name][1](student, teacher)
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    got, want = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (mean, exact))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert want.abs().max() > 1e-2


@pytest.mark.parametrize(("name", "form"), SIDES)
def test_monte_carlo_mean_is_within_its_error(name: str, form: str) -> None:
    student, teacher = pair()
    estimate, exact, who = CASES[name]
    sampler = student if who == "student" else teacher
    count = 50_000
    tokens = torch.multinomial(sampler.softmax(-1), count, True, generator=torch.Generator().manual_seed(3))
    ours, theirs = (token_log_probs(side.expand(count, -1), tokens) for side in (student, teacher))
    values = estimate(ours, theirs, form=form, reduction="none")
    error = values.std() / count**0.5
    assert abs(values.mean() - exact(student, teacher)) < 4 * error
    # On the other side's text the same numbers mean nothing.
    other = teacher if who == "student" else student
    tokens = torch.multinomial(other.softmax(-1), count, True, generator=torch.Generator().manual_seed(3))
    ours, theirs = (token_log_probs(side.expand(count, -1), tokens) for side in (student, teacher))
    wrong = estimate(ours, theirs, form=form, reduction="none")
    assert abs(wrong.mean() - exact(student, teacher)) > 10 * wrong.std() / count**0.5


def test_what_differentiating_the_values_would_give() -> None:
    student, teacher = pair()
    student.requires_grad_()
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    drawn = ours.detach().exp()
    k1 = (drawn * (ours - theirs)).sum()
    (gradient,) = torch.autograd.grad(k1, student, retain_graph=True)
    assert gradient.abs().max() < 1e-15
    k3 = (drawn * (ours - theirs + (theirs - ours).exp() - 1)).sum()
    (gradient,) = torch.autograd.grad(k3, student)
    (forward,) = torch.autograd.grad(forward_kl(student, teacher), student)
    torch.testing.assert_close(gradient, forward, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_k3_is_never_negative_and_k1_may_be(name: str) -> None:
    student, teacher = pair(4.0)
    values = {form: every_token(name, form, student, teacher)[0] for form in ("k1", "k3")}
    assert values["k3"].min() >= 0
    assert (values["k1"].min() < 0) == (name in ("forward", "reverse"))


@pytest.mark.parametrize(("name", "form"), SIDES)
def test_contract(name: str, form: str) -> None:
    loss = partial(CASES[name][0], form=form)
    ours, theirs = -logits(8, seed=4).abs(), -logits(8, seed=5).abs()
    check_contract(loss, ours, theirs)
    if CASES[name][2] == "teacher":
        # The student's own text has a surrogate gradient, which is not the value's.
        check_gradient(loss, ours, theirs)
    gaps = torch.tensor([0.0, -1e4, -1e4, 0.0, -5.0], dtype=torch.float64)
    check_half(loss, gaps, gaps.flip(0))
    if form == "k3" or name == "reverse":
        check_zero_at_match(loss, ours, ours.clone())


def test_refusals() -> None:
    one = torch.zeros(3)
    with pytest.raises(UserError, match="form: given k2"):
        sampled_forward_kl(one, one, form="k2")
    with pytest.raises(UserError, match="teacher_log_probs"):
        sampled_reverse_kl(one, torch.zeros(4))
    with pytest.raises(UserError, match="samples: given data"):
        sampled_jensen_shannon(one, one, samples="data")
    with pytest.raises(UserError, match="beta"):
        sampled_jensen_shannon(one, one, beta=1.0)
    with pytest.raises(UserError, match="tokens"):
        token_log_probs(torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64))


EXACT: dict[str, Callable[..., Any]] = {"forward": forward_kl, "reverse": reverse_kl, "js": jensen_shannon}


@pytest.mark.parametrize("name", EXACT)
def test_top_k_with_rest_is_a_lower_bound_that_becomes_exact(name: str) -> None:
    student, teacher = logits(20, CLASSES, seed=6), logits(20, CLASSES, seed=7)
    whole = EXACT[name](student, teacher, reduction="none")
    last = torch.zeros_like(whole)
    for k in range(1, CLASSES + 1):
        found = EXACT[name](student, keep_top(teacher, k), reduction="none")
        assert (found >= last - 1e-12).all(), "more outcomes never say less"
        assert (found <= whole + 1e-12).all()
        last = found
    torch.testing.assert_close(last, whole)


def test_top_k_without_the_rest_would_be_no_divergence() -> None:
    student = logits(200, CLASSES, seed=8).requires_grad_()
    teacher = logits(200, CLASSES, seed=9)
    p, q = keep_top(teacher, 2), student.log_softmax(-1)
    truncated = (p.values.exp() * (p.values - q.gather(-1, p.indices))).sum(-1)
    assert truncated.min() < 0
    same = teacher.clone().requires_grad_()
    q = same.log_softmax(-1)
    truncated = (p.values.exp() * (p.values - q.gather(-1, p.indices))).sum(-1)
    (gradient,) = torch.autograd.grad(truncated.sum(), same)
    assert gradient.abs().max() > 0.01
    check_zero_at_match(lambda s, t, **o: forward_kl(s, keep_top(t, 2), **o), same.detach(), same.detach())


def test_keep_top_of_a_sparse_teacher() -> None:
    teacher = logits(5, CLASSES, seed=10)
    again = keep_top(keep_top(teacher, 4), 2)
    want = SparseLogits.from_dense(teacher, 2)
    for part in ("values", "indices", "rest"):
        torch.testing.assert_close(getattr(again, part), getattr(want, part))
    with pytest.raises(UserError, match="k: given 5; allowed: 1 to 4"):
        keep_top(keep_top(teacher, 4), 5)
