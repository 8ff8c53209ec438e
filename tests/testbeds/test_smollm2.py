from __future__ import annotations

from typing import Any

import torch

from limbeck import testbeds
from limbeck.signals import SparseLogits


def test_the_cut_student_learns_but_for_its_embedding_and_the_cache_holds_the_teacher() -> None:
    bed = testbeds.load("smollm2", "smoke")
    student, test = bed.student(), bed.splits().test
    names = {name for name, weight in student.named_parameters() if weight.requires_grad}
    assert names
    assert not any("embed" in name for name in names)
    batch = bed.batch(next(test.batches(4)))  # type: ignore[attr-defined]
    answer = bed.signals()(batch, ("logits",))["logits"]  # type: ignore[attr-defined]
    assert isinstance(answer, SparseLogits)
    assert answer.size == bed.num_classes
    torch.testing.assert_close(
        answer.values.exp().sum(-1) + answer.rest.exp(), torch.ones(answer.rest.shape), atol=1e-4, rtol=0
    )
    assert bed.gate().passed


def test_the_writing_student_recovered_on_other_sentences_and_its_head_is_the_teachers() -> None:
    bed: Any = testbeds.load("smollm2:own_text", "smoke")
    student, cut, teacher = bed.student(), bed.cut(), bed.teacher()
    names = {name for name, weight in student.named_parameters() if weight.requires_grad}
    old = cut.state_dict()
    moved = {name for name, weight in student.state_dict().items() if not torch.equal(weight, old[name])}
    assert moved
    assert moved <= names
    assert torch.equal(student.get_output_embeddings().weight, teacher.get_output_embeddings().weight)

    full: Any = testbeds.load("smollm2:own_text")
    learnt = {tuple(row) for row in full._recovery_rows}
    assert len(full._recovery_rows) == full.plan.recovery.steps * full.plan.recovery.batch_size
    held = torch.cat([full._tokens["prompt"], full._tokens["answer"]], 1)[:, : full.plan.recovery.tokens]
    assert len(held) == full.plan.train + full.plan.test
    assert not learnt & {tuple(row) for row in held.tolist()}, "different sentences begin with the same words"


def test_texts_are_kept_and_depend_on_their_seed_alone() -> None:
    bed: Any = testbeds.load("smollm2:own_text", "smoke")
    kept, again = bed.teacher_answers(0), bed.write(bed.teacher(), bed.pool(), 0)
    assert torch.equal(kept.answer, again.answer)
    assert torch.equal(kept.prompt, bed.pool().input["prompt"])
    assert not torch.equal(kept.answer, bed.teacher_answers(1).answer)
    assert len(bed.text(kept)) == len(bed.pool())
