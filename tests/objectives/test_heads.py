from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.language import WindowSpans, answer_head, answer_logits
from limbeck.objectives import (
    DKD,
    KL,
    ClippedKL,
    CrossEntropy,
    DataCrossEntropy,
    JensenShannon,
    Objective,
    ReverseKL,
    SpanProduct,
)
from limbeck.signals import HeadLogits, SparseLogits
from limbeck.systems.language.multi_granularity.identities import network, texts

BATCH: dict[str, Any] = {**texts().batch(), "id": torch.arange(6)}


def head(seed: int, rows: tuple[int, ...] = (3, 4), size: int = 11, **options: Any) -> HeadLogits:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return HeadLogits(some(*rows, 5), some(size, 5), some(size), **options)


def test_whole_logits_of_a_teacher() -> None:
    student, teacher = head(0, scale=0.5, cap=3.0), head(1).to_dense().detach()
    mask = torch.tensor([[True, True, False, True], [True, False, True, True], [False] * 4])
    for objective in (KL(temperature=2), ReverseKL(), JensenShannon(0.3)):
        both_ways(objective, student, teacher, {"mask": mask})


def both_ways(objective: Objective, student: HeadLogits, teacher: Any, batch: dict[str, Any]) -> None:
    """Value and gradients of the chunked path against those of the whole logits."""
    leaves = [student.hidden, student.weight, student.bias]
    found = []
    for ours, theirs in (
        (student, teacher),
        (student.to_dense(), teacher.to_dense() if isinstance(teacher, HeadLogits) else teacher),
    ):
        loss = sum(objective({"logits": ours}, {"logits": theirs}, batch).values())
        assert isinstance(loss, torch.Tensor)
        found.append([loss, *torch.autograd.grad(loss, leaves)])  # type: ignore[arg-type]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert found[0][0] != 0


OBJECTIVES = [
    KL(temperature=2.0),
    ReverseKL(),
    JensenShannon(0.3),
    0.5 * CrossEntropy() + KL(),
    CrossEntropy(label_smoothing=0.1),
    DKD(),
    KL(reduction="sum"),
    KL(per_row="mean"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("options", [{}, {"scale": 0.3, "cap": 1.5}])
def test_chunks_give_what_whole_logits_give(objective: Objective, options: dict[str, float]) -> None:
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) > 0.3
    batch = {"target": torch.arange(12).reshape(3, 4) % 11, "mask": mask, "denominator": 7}
    both_ways(objective, head(0, **options), head(1, cap=2.0), batch)


def test_sparse_teachers_and_teachers_with_logits_too() -> None:
    whole = head(1).to_dense().detach()
    both_ways(KL(), head(0, cap=2.0), SparseLogits.from_dense(whole, 4), {})
    both_ways(KL(), head(0, cap=2.0), whole, {})


def test_a_student_with_logits_learns_from_a_head() -> None:
    ours, theirs = head(0).to_dense(), head(1)
    assert torch.equal(*[KL()({"logits": ours}, {"logits": one}, {})["kl"] for one in (theirs, theirs.to_dense())])


def test_objectives_that_need_whole_logits_multiply_them_out() -> None:
    ours, theirs = head(0), head(1)
    batch = {"target": torch.arange(12).reshape(3, 4) % 11}
    for objective in (ClippedKL((0.0, 1.0), k=5), SpanProduct(WindowSpans(2), k=4)):
        whole = objective({"logits": ours.to_dense()}, {"logits": theirs.to_dense()}, batch)
        found = objective({"logits": ours}, {"logits": theirs}, batch)
        assert {name: float(value) for name, value in found.items()} == {n: float(v) for n, v in whole.items()}


def test_the_teachers_head_gets_no_gradient_and_equal_heads_cost_nothing() -> None:
    student, teacher = head(0), head(1)
    KL()({"logits": student}, {"logits": teacher}, {})["kl"].backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None
    assert teacher.hidden.grad is None
    assert KL()({"logits": student}, {"logits": student}, {})["kl"].abs() < 1e-12


def test_language_models_by_their_heads() -> None:
    student, teacher = network(0), network(1)
    for objective in (KL() + CrossEntropy(), DataCrossEntropy()):
        grads = []
        for forward in (answer_head, answer_logits):
            student.zero_grad()
            ours, theirs = forward(student, BATCH)["logits"], forward(teacher, BATCH)["logits"]
            batch = {**BATCH, "data": BATCH}
            terms = objective({"logits": ours, "data_logits": ours}, {"logits": theirs}, batch)
            torch.stack(list(terms.values())).sum().backward()
            grads.append([weight.grad.clone() for weight in student.parameters() if weight.grad is not None])
        assert len(grads[0]) == len(list(student.parameters()))
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_memory_does_not_hold_the_vocabulary_for_every_row() -> None:
    rows, size = 4096, 4096
    student = HeadLogits(torch.randn(rows, 8, requires_grad=True), torch.randn(size, 8, requires_grad=True))
    teacher = HeadLogits(torch.randn(rows, 8), torch.randn(size, 8))
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            largest[0] = max(largest[0], out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    for cells, bound in ((KL(), 0.3), (CrossEntropy(), 0.3)):
        largest[0] = 0
        with pytest.MonkeyPatch.context() as patch, Watch():
            patch.setattr("limbeck.losses._chunked_head.CHUNK_ELEMENTS", 2**20)
            terms = cells({"logits": student}, {"logits": teacher}, {"target": torch.zeros(rows, dtype=torch.int64)})
            torch.stack(list(terms.values())).sum().backward()
        assert largest[0] < bound * rows * size
