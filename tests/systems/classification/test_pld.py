"""Tests of the system pld: the sheet's exact checks and pitfalls, and that training resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck import losses
from limbeck.data import TensorLoader
from limbeck.engine import Distiller, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.schedules import Linear
from limbeck.signals import SparseLogits
from limbeck.sources import Table
from limbeck.systems.classification.pld.experiment import COMPARISONS, EXPERIMENTS, PROPERTIES, ManyClasses
from limbeck.systems.classification.pld.method import PLD, label_weight
from tests.engine.helpers import Cut, Die

CLASSES = 6


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(objective: PLD, student: Tensor, teacher: Tensor, **batch: Any) -> Tensor:
    (loss,) = objective({"logits": student}, {"logits": teacher}, batch).values()
    return loss


STUDENT, TEACHER, TARGET = logits(8), logits(8, seed=1), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])


@pytest.mark.parametrize("claim", PROPERTIES, ids=lambda claim: claim.text)
def test_the_paper_s_exact_claims_hold(claim: Any) -> None:
    assert claim.check() <= claim.tolerance


def test_the_exact_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loss with a tempered student every check of the formula sees the difference."""
    from limbeck.systems.classification.pld import properties

    def wrong(student: Tensor, *rest: Any, **options: Any) -> Tensor:
        return losses.plackett_luce(student / 2, *rest, **options) - 0.1 * student.square().sum()

    monkeypatch.setattr(properties, "plackett_luce", wrong)
    noticed = {claim.text for claim in PROPERTIES if not claim.check() <= claim.tolerance}
    assert len(noticed) >= len(PROPERTIES) - 2


def test_a_wrong_teacher_s_label_still_comes_first_with_its_own_small_weight() -> None:
    """alpha follows the permutation: a_1 is the probability of the label, not the teacher's largest one."""
    teacher, label = torch.tensor([[5.0, 1.0, 3.0]]).double(), torch.tensor([1])
    student = torch.tensor([[0.3, -0.2, 0.9]]).double()
    p = teacher.softmax(-1)[0]
    choices = student[0, [1, 0, 2]]
    wanted = p[1] * (choices.logsumexp(0) - choices[0]) + p[0] * (choices[1:].logsumexp(0) - choices[1])
    torch.testing.assert_close(value(PLD(), student, teacher, target=label), wanted)


def test_temperature_is_of_the_weights_alone() -> None:
    """Other weights, same ranking: what is left at tau -> infinity is ListMLE over C of the untempered student."""
    flat = value(PLD(temperature=1e9), STUDENT, TEACHER, target=TARGET)
    torch.testing.assert_close(flat, value(PLD(weights="uniform"), STUDENT, TEACHER, target=TARGET))
    assert not torch.isclose(flat, value(PLD(temperature=1.0), STUDENT, TEACHER, target=TARGET))


def test_equal_logits_are_no_optimum_but_a_sure_label_is() -> None:
    """PLD is a likelihood: unlike KL it has a gradient at student = teacher."""
    student = TEACHER.clone().requires_grad_()
    value(PLD(), student, TEACHER, target=TARGET).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    assert not TEACHER.requires_grad


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = TEACHER.clone().requires_grad_()
    value(PLD(), STUDENT.clone().requires_grad_(), teacher, target=TARGET).backward()
    assert teacher.grad is None


def test_ties_of_a_float16_cache_are_broken_alike_every_time() -> None:
    tied = TEACHER.round().half()
    first = value(PLD(), STUDENT, tied, target=TARGET)
    assert all(value(PLD(), STUDENT, tied, target=TARGET) == first for _ in range(3))
    order = torch.randperm(8)
    again = value(PLD(), STUDENT[order], tied[order], target=TARGET[order])
    torch.testing.assert_close(again, first)


def test_dense_tasks_flatten_and_drop_ignored_positions() -> None:
    student, teacher = logits(2, 3, 4, seed=3), logits(2, 3, 4, seed=4)
    target = torch.randint(CLASSES, (2, 3, 4), generator=torch.Generator().manual_seed(5))
    target[0, 1] = 255
    kept = target != 255
    dense = value(PLD(ignore_index=255), student, teacher, target=target)
    torch.testing.assert_close(dense, value(PLD(), student[kept], teacher[kept], target=target[kept]))


def test_the_retrieval_variant_takes_the_first_column_and_forgives_padding() -> None:
    """A row is a query: its positive, its negatives, and the padding of a shorter list."""
    candidates = torch.ones(8, CLASSES, dtype=torch.bool)
    candidates[3:, 4:] = False
    loss = value(PLD(first="positive"), STUDENT, TEACHER, candidates=candidates)
    rows = [
        value(
            PLD(), STUDENT[i : i + 1, :n], TEACHER[i : i + 1, :n], target=torch.zeros(1, dtype=torch.long)
        )
        for i, n in enumerate(candidates.sum(-1).tolist())
    ]  # fmt: skip
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    assert not PLD(first="positive").needs.target


def test_without_a_label_the_teacher_chooses_first() -> None:
    own = value(PLD(first="teacher"), STUDENT, TEACHER)
    torch.testing.assert_close(own, value(PLD(), STUDENT, TEACHER, target=TEACHER.argmax(-1)))


def test_the_weight_of_the_label_is_reported() -> None:
    wanted = (TEACHER / 4).softmax(-1)[torch.arange(8), TARGET].mean()
    assert label_weight(TEACHER, TARGET, 4.0) == pytest.approx(float(wanted))
    sure = functional.one_hot(TARGET, CLASSES) * 1e3
    assert label_weight(sure, TARGET) == pytest.approx(1.0)
    assert label_weight(-sure.double(), TARGET) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("target", lambda: value(PLD(), STUDENT, TEACHER, target=TARGET + 1)),
        ("target", lambda: value(PLD(), STUDENT, TEACHER, target=TEACHER.softmax(-1))),  # mixup has no first place
        ("batch", lambda: value(PLD(), STUDENT, TEACHER)),
        ("teacher_logits", lambda: value(PLD(), STUDENT, TEACHER[:, :5], target=TARGET)),
        ("student logits", lambda: value(PLD(), STUDENT[:, :1], TEACHER[:, :1], target=TARGET * 0)),
        ("signal logits", lambda: value(PLD(), STUDENT, SparseLogits.from_dense(TEACHER, 3), target=TARGET)),
        ("first", lambda: PLD(first="best")),
        ("weights", lambda: value(PLD(weights="linear"), STUDENT, TEACHER, target=TARGET)),
        ("temperature", lambda: value(PLD(temperature=0.0), STUDENT, TEACHER, target=TARGET)),
    ],
    ids=["out of range", "soft labels", "no label", "other classes", "one class", "top-k", "first", "weights", "tau"],
)  # fmt: skip
def test_what_has_no_ranking_is_refused(key: str, call: Any) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.key == key


def test_a_teacher_with_nan_is_refused_before_training() -> None:
    broken = TEACHER.float()
    broken[2, 3] = torch.nan
    with pytest.raises(LimbeckError, match="NaN or infinite for 1 of 8 samples"):
        Table(torch.arange(8), {"logits": broken})


def train(**options: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = {"input": torch.randn(40, 5, generator=generator), "target": torch.arange(40) % CLASSES}
    table = Table(torch.arange(40), {"logits": logits(40).float()})
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, CLASSES))
    distiller = Distiller(student, PLD(temperature=Linear(1.0, 4.0)), table)
    fit(distiller, TensorLoader(data, 8), steps=8, accelerator="cpu", **options)
    return student.state_dict()


def test_training_that_was_cut_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = train()
    with pytest.raises(Cut):
        train(out=tmp_path, checkpoint_seconds=0.0, callbacks=[Die(3)])
    resumed = train(out=tmp_path, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_student_learns_the_ranking_it_is_shown() -> None:
    """With free scores and flat weights gradient descent finds the label first and the teacher's order behind it."""
    free = torch.zeros_like(STUDENT, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        value(PLD(4.0), free, TEACHER, target=TARGET).backward()
        optimizer.step()
    wanted = TEACHER.scatter(-1, TARGET[:, None], torch.inf).argsort(-1, descending=True)
    assert torch.equal(free.argsort(-1, descending=True), wanted)


def test_every_statement_is_tested_somewhere() -> None:
    stated = {claim.text for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    assert all(any(text.startswith(claim.text) for text in stated) for claim in COMPARISONS)
    assert {claim.text for claim in PROPERTIES} <= {claim.text for claim in ManyClasses.claims}


def test_an_arm_of_pld_says_how_much_the_label_weighs() -> None:
    experiment = EXPERIMENTS["few_labels"]("smoke")
    arms = {arm: experiment.run(arm, 0).metrics for arm in ("pld", "pld-t4", "pld-other-order", "listmle", "none")}
    assert "label_weight" not in arms["none"]
    assert "label_weight" not in arms["listmle"]
    assert 1 > arms["pld"]["label_weight"] > arms["pld-t4"]["label_weight"] > 0.1
    assert arms["pld-other-order"]["label_weight"] == pytest.approx(arms["pld"]["label_weight"], rel=1e-6)
    assert arms["pld"]["accuracy"] != arms["pld-other-order"]["accuracy"]
