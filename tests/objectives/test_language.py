from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.nn.quantile_bounds import QuantileBounds
from limbeck.objectives import ClippedKL, DataCrossEntropy, SpanProduct
from limbeck.signals import SparseLogits

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (2 * torch.randn(3, 5, 20, generator=GENERATOR) for _ in range(2))
TARGET = torch.randint(20, (3, 5), generator=GENERATOR)
MASK = torch.arange(5) < torch.tensor([[5], [3], [1]])
BATCH = {"target": TARGET, "mask": MASK}


def terms(objective: ClippedKL | SpanProduct, student: Tensor = STUDENT) -> dict[str, Tensor]:
    return objective({"logits": student}, {"logits": TEACHER}, BATCH)


def test_fixed_windows_are_the_loss() -> None:
    objective = ClippedKL((0.0, 0.9), k=10, softness=0.0)
    want = losses.clipped_kl(STUDENT, TEACHER, upper=0.9, k=10, label=TARGET, mask=MASK)
    found = terms(objective)
    assert set(found) == {"clipped_kl"}
    torch.testing.assert_close(found["clipped_kl"], want)
    assert objective.observed()["kept_mass"] > 0.85
    assert not list(objective.parameters())


def test_a_learned_window_moves_under_its_loss_and_the_student_does_not_feel_its_features() -> None:
    objective, student = ClippedKL(k=20), STUDENT.clone().requires_grad_(True)
    found = terms(objective, student)
    sum(found.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None and bool((weight.grad != 0).any()) for weight in objective.parameters())
    assert objective.bounds is not None
    with torch.no_grad():
        ranked = losses.ranked_classes(TEACHER, 20, label=TARGET, mask=MASK)
        theirs = STUDENT.log_softmax(-1).gather(-1, ranked.indices)
        lower, upper = objective.bounds(ranked.log_probs, theirs)
    again = STUDENT.clone().requires_grad_(True)
    kept = losses.window(ranked, lower, upper, objective.softness)
    losses.windowed_kl(again, ranked, kept, mask=MASK).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, again.grad)


def test_without_a_floor_the_window_closes() -> None:
    """What the reviews saw: nothing in the KL keeps the window open."""

    def mass_after(floor: float) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            objective = ClippedKL(QuantileBounds(hidden=16), k=20, floor=floor, floor_weight=20.0, label=False)
        optimiser = torch.optim.Adam(objective.parameters(), 0.05)
        for _ in range(150):
            optimiser.zero_grad()
            sum(terms(objective).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return float(objective.observed()["kept_mass"])

    closed, held = mass_after(0.0), mass_after(0.9)
    assert closed < held - 0.05
    assert held > 0.8


def test_masked_positions_and_garbage() -> None:
    dirty_student, dirty_teacher = STUDENT.clone(), TEACHER.clone()
    dirty_student[~MASK] = float("nan")
    dirty_teacher[~MASK] = float("inf")
    for objective in (ClippedKL(k=20), SpanProduct(lambda tokens, mask, draws: torch.where(mask, 0, -1))):
        clean = terms(objective)
        found = objective({"logits": dirty_student}, {"logits": dirty_teacher}, BATCH)
        for name, value in clean.items():
            torch.testing.assert_close(found[name], value)
    nothing = {"target": TARGET, "mask": torch.zeros_like(MASK)}
    student = STUDENT.clone().requires_grad_(True)
    value = sum(ClippedKL(k=20)({"logits": student}, {"logits": TEACHER}, nothing).values(), torch.zeros(()))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_spans_do_not_cross_the_mask() -> None:
    objective = SpanProduct(lambda tokens, mask, draws: torch.zeros_like(tokens), k=None)
    want = losses.span_product(STUDENT, TEACHER, k=None, mask=MASK[:, 1:] & MASK[:, :-1])
    torch.testing.assert_close(terms(objective)["span"], want)
    single = objective({"logits": STUDENT[:, :1]}, {"logits": TEACHER[:, :1]}, {"target": TARGET[:, :1]})
    assert single["span"].item() == 0


def test_a_cached_teacher_serves_and_another_vocabulary_does_not() -> None:
    sparse = SparseLogits.from_dense(TEACHER, 8)
    for objective in (ClippedKL(k=8), SpanProduct(lambda tokens, mask, draws: torch.where(mask, 0, -1))):
        assert all(torch.isfinite(v) for v in objective({"logits": STUDENT}, {"logits": sparse}, BATCH).values())
        with pytest.raises(UserError, match="tokenizer"):
            objective({"logits": STUDENT}, {"logits": TEACHER[..., :19]}, BATCH)


def test_data_cross_entropy_reads_the_data() -> None:
    data = {"target": TARGET, "mask": MASK}
    found = DataCrossEntropy()({"data_logits": STUDENT}, {}, {"data": data})
    torch.testing.assert_close(found["data"], losses.cross_entropy(STUDENT, TARGET, mask=MASK))
    with pytest.raises(UserError, match="SequenceDistiller"):
        DataCrossEntropy()({"data_logits": STUDENT}, {}, {})


def test_bounds_begin_wide_and_take_any_number_of_classes() -> None:
    bounds = QuantileBounds(features=8)
    for classes in (3, 8, 20):
        lower, upper = bounds(torch.randn(2, classes).log_softmax(-1), torch.randn(2, classes).log_softmax(-1))
        assert ((lower > 0) & (lower < 0.05)).all()
        assert ((upper > 0.95) & (upper < 1)).all()
    with pytest.raises(UserError, match="softness"):
        ClippedKL(softness=0.0)
