"""Asking the teacher about some samples: who is asked, and what each part weighs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.objectives import KL, AskTeacher, CrossEntropy, total

# Entropies from nearly 0 to 2 bits; the second and the last are wrong.
STUDENT = torch.tensor([[9.0, 0, 0, 0], [0, 8.0, 0, 0], [1.0, 0.5, 0, 0], [0.0, 0, 0, 0], [0, 0, 0.1, 0]])
TEACHER = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"id": torch.arange(5), "target": torch.tensor([0, 0, 0, 0, 1])}


def asked() -> object:
    return 0.7 * KL(2.0) + 0.3 * CrossEntropy()


def by_hand(rows: Tensor) -> Tensor:
    """The released loss: a mean over those asked plus a mean over the others."""
    student, teacher, target = STUDENT[rows], TEACHER[rows], BATCH["target"][rows]
    soft = functional.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="batchmean")
    return 0.7 * 4 * soft + 0.3 * functional.cross_entropy(student, target)


@pytest.mark.parametrize(
    ("ask", "who"), [("uncertain", [False, False, True, True, True]), ("wrong", [False, True, False, False, True])]
)
def test_who_is_asked_and_what_that_weighs(ask: str, who: list[bool]) -> None:
    objective, chosen = AskTeacher(asked(), ask, cutoff=0.5), torch.tensor(who)  # type: ignore[arg-type]
    terms = objective({"logits": STUDENT}, {"logits": TEACHER}, BATCH)
    wanted = by_hand(chosen) + functional.cross_entropy(STUDENT[~chosen], BATCH["target"][~chosen])
    torch.testing.assert_close(total(terms), wanted)
    assert float(objective.observed()["asked_share"]) == pytest.approx(sum(who) / 5)
    assert "alone_cross_entropy" in terms


def test_always_is_the_objective_itself() -> None:
    ours = AskTeacher(asked())({"logits": STUDENT}, {"logits": TEACHER}, BATCH)  # type: ignore[arg-type]
    torch.testing.assert_close(total(ours), by_hand(torch.ones(5, dtype=torch.bool)))


def test_random_asks_by_entropy() -> None:
    objective = AskTeacher(asked(), "random")  # type: ignore[arg-type]
    logits = torch.tensor([[0.0, 0, 0, 0], [30.0, 0, 0, 0], [0, 0, -30.0, -30.0]]).repeat(4000, 1)
    torch.manual_seed(0)
    shares = objective.chosen(logits, {}).view(4000, 3).double().mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.0, 0.5]).double(), rtol=0, atol=0.03)


def test_a_part_without_samples_gives_zero_and_no_gradient_of_nan() -> None:
    student = STUDENT.clone().requires_grad_()
    batch = {**BATCH, "target": STUDENT.argmax(-1)}
    loss = total(AskTeacher(asked(), "wrong")({"logits": student}, {"logits": TEACHER}, batch))  # type: ignore[arg-type]
    torch.testing.assert_close(loss, functional.cross_entropy(STUDENT, batch["target"]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()


def test_masked_rows_are_nobodys() -> None:
    objective = AskTeacher(asked(), "wrong")  # type: ignore[arg-type]
    mask = torch.tensor([True, True, True, True, False])
    spoilt = STUDENT.clone()
    spoilt[4] = math.nan
    whole = objective({"logits": spoilt}, {"logits": TEACHER}, {**BATCH, "mask": mask})
    short = {"id": torch.arange(4), "target": BATCH["target"][:4]}
    torch.testing.assert_close(total(whole), total(objective({"logits": STUDENT[:4]}, {"logits": TEACHER[:4]}, short)))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="ask"):
        AskTeacher(CrossEntropy(), "sometimes")
    with pytest.raises(UserError, match="denominator"):
        AskTeacher(CrossEntropy())({"logits": STUDENT}, {}, {**BATCH, "denominator": 10})
