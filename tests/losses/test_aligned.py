from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import (
    forward_kl,
    likelihood_matching,
    reverse_kl,
    span_places,
    span_sums,
    total_variation,
    universal_logit_distance,
)
from limbeck.signals import SparseLogits
from tests.losses.invariants import (
    check_contract,
    check_gradient,
    check_half,
    check_leading_axes,
    check_shift,
    check_zero_at_match,
    extreme_logits,
    logits,
)

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 8, seed=2)


def by_hand(student: list[float], teacher: list[float]) -> float:
    def sorted_softmax(row: list[float], size: int) -> list[float]:
        total = sum(math.exp(x) for x in row)
        return sorted((math.exp(x) / total for x in row), reverse=True) + [0.0] * (size - len(row))

    size = max(len(student), len(teacher))
    pairs = zip(sorted_softmax(student, size), sorted_softmax(teacher, size), strict=True)
    return sum(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("swap", [False, True])
def test_uld_against_plain_numbers(swap: bool) -> None:
    one, two = (TEACHER, STUDENT) if swap else (STUDENT, TEACHER)
    found = universal_logit_distance(one, two, reduction="none")
    want = [by_hand(a, b) for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))
    assert found.max() <= 2


def test_uld_contract() -> None:
    check_contract(universal_logit_distance, STUDENT, TEACHER)
    check_contract(universal_logit_distance, STUDENT, SparseLogits.from_dense(TEACHER, 3))
    check_gradient(universal_logit_distance, STUDENT, TEACHER)
    check_gradient(partial(universal_logit_distance, temperature=2.0), TEACHER, STUDENT)
    check_gradient(universal_logit_distance, STUDENT, SparseLogits.from_dense(TEACHER, 3))
    check_shift(universal_logit_distance, STUDENT, TEACHER)
    check_leading_axes(universal_logit_distance, STUDENT, TEACHER)
    check_half(universal_logit_distance, *extreme_logits())
    check_zero_at_match(universal_logit_distance, STUDENT, STUDENT.clone())


def test_uld_knows_no_names() -> None:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        universal_logit_distance(STUDENT, TEACHER[:, order], reduction="none"),
        universal_logit_distance(STUDENT, TEACHER, reduction="none"),
    )
    assert universal_logit_distance(TEACHER, TEACHER[:, order]) < 1e-15
    # Tokens that cannot occur, such as padded rows, are no difference.
    padded = torch.cat([TEACHER, torch.full((6, 3), -torch.inf, dtype=TEACHER.dtype)], 1)
    torch.testing.assert_close(universal_logit_distance(STUDENT, padded), universal_logit_distance(STUDENT, TEACHER))


def test_uld_of_a_top_k_teacher_is_a_lower_bound() -> None:
    whole = universal_logit_distance(STUDENT, TEACHER, reduction="none")
    for k in range(1, 9):
        found = universal_logit_distance(STUDENT, SparseLogits.from_dense(TEACHER, k), reduction="none")
        assert (found <= whole + 1e-12).all()
        if k >= 5:
            torch.testing.assert_close(found, whole)


def test_one_token_spans_are_coins() -> None:
    student, teacher = logits(7, 5, seed=3), logits(7, 5, seed=4)
    target = torch.arange(7) % 5
    ours, theirs = (side.log_softmax(-1).gather(-1, target[:, None])[:, 0] for side in (student, teacher))

    def coin(logs: torch.Tensor) -> torch.Tensor:
        return torch.stack([logs, torch.log(1 - logs.exp())], -1)

    for name, loss in (("kl", forward_kl), ("reverse_kl", reverse_kl), ("total_variation", total_variation)):
        found = likelihood_matching(ours, theirs, temperature=1.0, divergence=name, reduction="none")
        torch.testing.assert_close(found, loss(coin(ours), coin(theirs), reduction="none"))
        warm = likelihood_matching(ours, theirs, temperature=20.0, divergence=name, reduction="none")
        torch.testing.assert_close(warm, loss(coin(ours / 20), coin(theirs / 20), reduction="none"))


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "total_variation"])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_likelihood_matching_contract(divergence: str, temperature: float) -> None:
    loss = partial(likelihood_matching, divergence=divergence, temperature=temperature)
    ours, theirs = -logits(8, seed=5).abs() - 0.01, -logits(8, seed=6).abs() - 0.01
    check_contract(loss, ours, theirs)
    check_gradient(loss, ours, theirs)
    check_zero_at_match(loss, ours, ours.clone())
    gaps = torch.tensor([0.0, -1e4, -1e4, 0.0, -1e-4, -30.0], dtype=torch.float64)
    check_half(loss, gaps, gaps.flip(0))


def test_likelihood_matching_at_a_high_temperature_has_its_limit() -> None:
    # T KL -> a log(a / b) - a + b, for a = -log p, b = -log q.
    a, b = torch.tensor([0.5, 3.0, 8.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 8.5], dtype=torch.float64)
    found = 1e6 * likelihood_matching(-b, -a, temperature=1e6, reduction="none")
    torch.testing.assert_close(found, a * (a / b).log() - a + b, rtol=1e-4, atol=1e-6)


def test_sums_and_places_of_spans() -> None:
    spans = torch.tensor([[0, 0, -1, 1, 2], [-1, 0, 1, 1, -1]])
    values = torch.tensor([[1.0, 2.0, torch.nan, 3.0, 4.0], [torch.inf, 5.0, 6.0, 7.0, 8.0]])
    assert span_sums(values, spans, 3).tolist() == [[3.0, 3.0, 4.0], [5.0, 13.0, 0.0]]
    first, last = span_places(spans, 3)
    assert first.tolist() == [[0, 3, 4], [1, 2, 0]]
    assert last.tolist() == [[1, 3, 4], [1, 3, -1]]
    none = torch.full((2, 0), -1)
    assert span_places(none, 1)[1].tolist() == [[-1], [-1]]


def test_refusals() -> None:
    with pytest.raises(UserError, match="teacher_logits: given rows"):
        universal_logit_distance(STUDENT, TEACHER[:3])
    with pytest.raises(UserError, match="temperature: given 2"):
        universal_logit_distance(STUDENT, SparseLogits.from_dense(TEACHER, 2), temperature=2.0)
    with pytest.raises(UserError, match="divergence: given js"):
        likelihood_matching(STUDENT, STUDENT, divergence="js")
    with pytest.raises(UserError, match="teacher_log_likelihood"):
        likelihood_matching(STUDENT, TEACHER)
    with pytest.raises(UserError, match="temperature"):
        likelihood_matching(STUDENT, STUDENT, temperature=0.0)
