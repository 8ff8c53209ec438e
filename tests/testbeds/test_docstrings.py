from __future__ import annotations

import pytest
import torch

from limbeck import testbeds
from limbeck.language import Sequences
from limbeck.testbeds.code_corpus import Function
from limbeck.testbeds.docstrings import words_of
from limbeck.testbeds.text_pairs import END, SEPARATOR, START, SplitSizes


def test_words_of_a_function() -> None:
    code = "def getNodeCount(self, graph_id=None):  # quick\n    return len(self.nodes[graph_id])"
    found = words_of(Function("a.py", 1, "getNodeCount", "Return the number of ``nodes``. More text.", code))
    assert found is not None
    assert found[0].startswith("get node count self graph id none return len self nodes graph id")
    assert found[1] == "return the number of nodes"
    assert words_of(Function("a.py", 1, "f", "Too short.", code)) is None


def test_smoke_size_is_whole() -> None:
    bed = testbeds.load("docstrings", "smoke")
    splits = bed.splits()
    whole = Sequences.of(splits.train.input)  # type: ignore[arg-type]
    assert (whole.prompt.gather(1, whole.prompt_mask.int().argmax(1, keepdim=True)) == START).all()
    assert (whole.prompt[:, -1] == SEPARATOR).all()
    last = whole.answer.gather(1, (whole.lengths - 1)[:, None])
    assert (last == END).all()
    ids = [set(getattr(splits, name).id.tolist()) for name in ("train", "validation", "test")]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert bed.gate().passed
    found = bed.evaluate(bed.student(), splits.test)
    assert 0 <= found["rouge_l"] <= 1
    written = bed.write(bed.student(), splits.test, seed=1)  # type: ignore[attr-defined]
    assert torch.equal(written.answer, bed.write(bed.student(), splits.test, seed=1, batch_size=7).answer)  # type: ignore[attr-defined]
    # What the teacher answers to the pool is kept row by row.
    kept = bed.teacher_answers(0)  # type: ignore[attr-defined]
    assert torch.equal(kept.prompt, Sequences.of(bed.pool().input).prompt)  # type: ignore[attr-defined]


def test_no_file_is_in_two_splits() -> None:
    bed = testbeds.load("docstrings", "smoke")
    parts = bed._texts["parts"]  # type: ignore[attr-defined]
    docs = {name: {pair[1] for pair in pairs} for name, pairs in parts.items()}
    assert len(docs["train"] & docs["test"]) <= 0.05 * len(docs["test"])


def test_the_long_regime_has_encoder_decoders_and_their_twins() -> None:
    from limbeck.language import without_answers
    from limbeck.models.encoder_decoder import core_parameters

    bed = testbeds.load("docstrings:long", "smoke")
    student = bed.student()
    twin = bed.student_of(SplitSizes(16, 2, 1, 2, 1, joined=True))  # type: ignore[attr-defined]
    assert student.config.is_encoder_decoder
    assert core_parameters(twin) == pytest.approx(core_parameters(student), rel=0.02)
    test = bed.splits().test
    given = without_answers(Sequences.of(test.input))  # type: ignore[arg-type]
    written = [bed.decoding()(model, given) for model in (student, twin)]  # type: ignore[attr-defined]
    assert all(len(one) == len(test) for one in written)
    assert bed.student_of(bed.plan.student).state_dict().keys() == student.state_dict().keys()  # type: ignore[attr-defined]
