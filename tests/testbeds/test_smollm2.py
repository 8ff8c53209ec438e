from __future__ import annotations

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
