from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import KL, CrossEntropy, FeatureMSE, Needs, Objective, Scaled, Sum, row_options, total
from limbeck.schedules import Linear
from limbeck.signals import Batch, Signals, SparseLogits

STUDENT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
BATCH: dict[str, Any] = {"input": torch.ones(6), "target": torch.arange(6) % 4, "id": torch.arange(6)}


def terms(objective: Objective, **batch: Any) -> dict[str, Tensor]:
    return objective({"logits": STUDENT}, {"logits": TEACHER}, {**BATCH, **batch})


def test_objectives_add_and_scale() -> None:
    ce = losses.cross_entropy(STUDENT, BATCH["target"])
    kl = losses.forward_kl(STUDENT, TEACHER, temperature=4.0, scale="squared")
    found = terms(0.1 * CrossEntropy() + 0.9 * KL(temperature=4))
    assert list(found) == ["cross_entropy", "kl"]
    torch.testing.assert_close(found["cross_entropy"], 0.1 * ce)
    torch.testing.assert_close(found["kl"], 0.9 * kl)
    torch.testing.assert_close(total(found), 0.1 * ce + 0.9 * kl)
    torch.testing.assert_close(total(terms(2 * (CrossEntropy() + KL(temperature=4) * 0.5))), 2 * ce + kl)


def test_sums_are_flat_and_a_sum_of_a_list_works() -> None:
    objective = sum([CrossEntropy(), KL(), KL() + CrossEntropy()])
    assert isinstance(objective, Sum)
    assert len(objective.parts) == 4


def test_weights_are_any_numbers_or_schedules() -> None:
    for weight in (2, 2.0, np.float32(2), np.float64(2), np.int64(2), Linear(2.0, 2.0)):
        for objective in (weight * KL(), KL() * weight):
            assert isinstance(objective, Scaled)
            torch.testing.assert_close(terms(objective)["kl"], 2 * terms(KL())["kl"])
    for other in ("2", torch.ones(2), None):
        with pytest.raises(TypeError):
            other * KL()  # type: ignore[operator]
    with pytest.raises(TypeError):
        KL() + 2  # type: ignore[operator]


def test_terms_of_one_name_are_told_apart() -> None:
    found = terms(KL(1.0) + KL(2.0) + KL(3.0))
    assert list(found) == ["kl", "kl_2", "kl_3"]
    torch.testing.assert_close(found["kl_3"], terms(KL(3.0))["kl"])


def test_samples_that_the_teacher_says_nothing_about_do_not_count() -> None:
    told = torch.tensor([True, False, True, True, False, True])
    objective = 0.5 * CrossEntropy() + KL()
    teacher = {"logits": TEACHER.where(told[:, None], torch.nan), "told": told}
    found = objective({"logits": STUDENT}, teacher, BATCH)
    for name, value in terms(objective, mask=told).items():
        torch.testing.assert_close(found[name], value)
    mask = torch.tensor([True, True, False, True, False, False])
    both = objective({"logits": STUDENT}, teacher, {**BATCH, "mask": mask})
    torch.testing.assert_close(total(both), total(terms(objective, mask=mask & told)))


def test_needs_are_those_of_all_parts() -> None:
    objective = 0.5 * CrossEntropy(student="head") + FeatureMSE(student="mid", teacher="tap") + KL()
    assert objective.needs.student == ("head", "mid", "logits")
    assert objective.needs.teacher == ("tap", "logits")
    assert objective.needs.target
    assert not KL().needs.target


def test_what_is_missing_is_named_with_its_side() -> None:
    with pytest.raises(UserError, match="student signal: given logits; allowed: embedding"):
        KL()({"embedding": STUDENT}, {"logits": TEACHER}, BATCH)
    with pytest.raises(UserError, match="teacher signal: given logits; allowed: embedding"):
        KL()({"logits": STUDENT}, {"embedding": TEACHER}, BATCH)
    with pytest.raises(UserError, match="batch: given .*a batch with a target.*CrossEntropy compares with labels"):
        CrossEntropy()({"logits": STUDENT}, {}, {"input": STUDENT, "id": BATCH["id"]})


def test_schedules_of_weights_and_temperatures_follow_progress() -> None:
    objective = Linear(1.0, 3.0) * KL(Linear(1.0, 5.0))
    for progress, weight, temperature in ((0.0, 1.0, 1.0), (0.5, 2.0, 3.0), (1.0, 3.0, 5.0)):
        objective.set_progress(progress)
        torch.testing.assert_close(terms(objective)["kl"], weight * terms(KL(temperature))["kl"])


class Product(Objective):
    needs = Needs(student="logits", teacher="logits")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"product": (student["logits"] * teacher["logits"]).mean()}


def test_the_gradient_into_the_teacher_is_stopped_unless_declared() -> None:
    class Through(Product):
        stop_teacher_gradient = False

    for kind, flows in ((Product, False), (Through, True)):
        student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        total(kind()({"logits": student}, {"logits": teacher}, BATCH)).backward()
        assert student.grad is not None
        assert (teacher.grad is not None) is flows
        total((1.0 * kind() + kind())({"logits": student}, {"logits": teacher}, BATCH)).backward()
        assert (teacher.grad is not None) is flows


def test_an_objective_without_terms_says_so() -> None:
    class Empty(Objective):
        pass

    with pytest.raises(UserError, match="objective: given Empty; allowed: a subclass that defines terms"):
        Empty()({}, {}, BATCH)
    with pytest.raises(UserError, match="objective: given no terms"):
        total({})


def test_terms_must_be_scalars_and_keep_their_precision() -> None:
    with pytest.raises(UserError, match=r"term kl: given shape \[6\]; allowed: a scalar"):
        total({"kl": torch.ones(6)})
    assert total({"a": torch.ones((), dtype=torch.float64)}).dtype == torch.float64
    assert total({"a": torch.ones((), dtype=torch.bfloat16), "b": torch.ones(())}).dtype == torch.float32


def test_mask_weight_and_denominator_of_a_batch_reach_the_loss() -> None:
    mask, weight = torch.arange(6) < 4, torch.arange(6.0)
    options = {"mask": mask, "weight": weight, "denominator": 10.0}
    assert set(row_options({**BATCH, **options})) == set(options)
    assert row_options({**BATCH, "mask": None}) == {}
    expected = losses.forward_kl(STUDENT, TEACHER, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(terms(KL(), **options)["kl"], expected)


def test_observed_numbers_are_no_part_of_the_loss() -> None:
    class Gated(Product):
        def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
            self.observe(gate=student["logits"].mean())
            return super().terms(student, teacher, batch)

    objective = 0.5 * Gated() + KL()
    found = objective({"logits": STUDENT.clone().requires_grad_()}, {"logits": TEACHER}, BATCH)
    assert set(found) == {"product", "kl"}
    assert set(objective.observed()) == {"gate"}
    assert not objective.observed()["gate"].requires_grad


def test_sparse_teacher_logits_are_read_by_divergences() -> None:
    sparse = SparseLogits.from_dense(TEACHER, 4)
    found = KL()({"logits": STUDENT}, {"logits": sparse}, BATCH)["kl"]
    torch.testing.assert_close(found, terms(KL())["kl"])
