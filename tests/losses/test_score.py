"""Score distillation's losses against plain sums, their gradients, and the invariants of every loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses.score import denoising, non_finite_rows, score_identity, score_identity_scale, toward_target

from . import invariants as check

X, REAL, FAKE = (check.logits(8, 3, 2, 2, seed=seed) for seed in (1, 2, 3))


def gradient(loss, x, **options):
    x = x.clone().requires_grad_()
    value = loss(x, **options)
    return value.detach(), torch.autograd.grad(value, x)[0]


def test_the_gradient_is_the_direction_over_the_number_of_elements():
    value, found = gradient(lambda x: toward_target(x, REAL), X)
    torch.testing.assert_close(found, REAL / X.numel())
    torch.testing.assert_close(value, 0.5 * REAL.square().mean())
    _, summed = gradient(lambda x: toward_target(x, REAL, per_row="sum"), X)
    torch.testing.assert_close(summed, REAL / len(X))


def test_nothing_flows_into_the_direction():
    direction = REAL.clone().requires_grad_()
    loss = toward_target(X.clone().requires_grad_(), direction)
    assert torch.autograd.grad(loss, direction, allow_unused=True)[0] is None


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_score_identity_is_the_formula(alpha):
    expected = ((REAL - FAKE) * ((REAL - X) - alpha * (REAL - FAKE))).flatten(1).sum(1)
    torch.testing.assert_close(score_identity(X, REAL, FAKE, alpha=alpha, reduction="none"), expected)
    if alpha == 1:
        torch.testing.assert_close(((REAL - FAKE) * (FAKE - X)).flatten(1).sum(1), expected)


def test_the_gradient_through_the_denoisers_counts():
    def loss(x, cut):
        real, fake = torch.tanh(0.5 * x), torch.sin(x)
        if cut:
            real, fake = real.detach(), fake.detach()
        return score_identity(x, real, fake)

    (_, through), (_, cut) = gradient(partial(loss, cut=False), X), gradient(partial(loss, cut=True), X)
    torch.testing.assert_close(cut, (torch.sin(X) - torch.tanh(0.5 * X)) / len(X))
    assert torch.nn.functional.cosine_similarity(through.flatten(), cut.flatten(), dim=0) < 0.9


def test_the_scale_is_a_constant_with_a_floor():
    x = X.clone().requires_grad_()
    scale = score_identity_scale(x, REAL)
    assert not scale.requires_grad
    torch.testing.assert_close(scale, (X - REAL).abs().flatten(1).mean(1).float(), check_dtype=False)
    assert float(score_identity_scale(X, X).max()) == pytest.approx(1e-5)


def test_denoising_weighs_samples():
    weight = torch.rand(8, dtype=torch.float64)
    expected = (weight * (REAL - FAKE).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(denoising(REAL, FAKE, weight=weight), expected)


@pytest.mark.parametrize(
    ("loss", "others"),
    [(toward_target, (REAL,)), (partial(score_identity, alpha=1.2), (REAL, FAKE)), (denoising, (REAL,))],
    ids=["toward_target", "score_identity", "denoising"],
)
def test_the_contract(loss, others):
    for per_row in ("mean", "sum"):
        bound = partial(loss, per_row=per_row)
        check.check_contract(bound, X, *others)
        check.check_half(bound, X * 5e1, *(other * 5e1 for other in others))
    if loss is not toward_target:
        check.check_gradient(loss, X[:2], *(other[:2] for other in others))


def test_errors_and_bad_rows():
    for call in (
        lambda: toward_target(X, REAL[:4]),
        lambda: score_identity(X, REAL, FAKE[:4]),
        lambda: denoising(X[:, 0, 0, 0], REAL[:, 0, 0, 0]),
    ):
        with pytest.raises(UserError):
            call()
    spoiled = X.clone()
    spoiled[2, 0, 0, 0], spoiled[5, 1, 1, 1] = torch.nan, torch.inf
    assert non_finite_rows(REAL, spoiled).nonzero().flatten().tolist() == [2, 5]
