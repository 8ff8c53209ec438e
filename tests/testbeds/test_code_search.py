from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from limbeck.errors import UserError
from limbeck.testbeds.code_search import CodeSearch, evaluate_retrieval


@pytest.fixture(scope="module")
def testbed() -> CodeSearch:
    return CodeSearch(size="smoke")


def test_a_held_out_split_is_queries_and_then_their_functions(testbed: CodeSearch) -> None:
    splits = testbed.splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (200, 80, 120)
    test = splits.test
    assert isinstance(test.input, list)
    by_code = {function.code: function.doc for function in testbed.corpus.test}
    assert [by_code[code] for code in test.input[60:]] == test.input[:60]
    assert torch.equal(test.labels[:60], test.labels[60:])
    everything = torch.cat([splits.train.id, splits.validation.id, splits.test.id])
    assert len(everything.unique()) == 400


def test_retrieval_counts_ranks(testbed: CodeSearch) -> None:
    test = testbed.splits().test
    known = dict(zip(test.input, test.labels.tolist(), strict=True))

    def oracle(texts: Sequence[str]) -> torch.Tensor:
        return torch.eye(60)[torch.tensor([known[text] - 200_000 for text in texts])]

    def neighbour(texts: Sequence[str]) -> torch.Tensor:
        """Queries lie a little nearer to the next document than to their own."""
        own = oracle(texts)
        is_query = torch.tensor([text in set(test.input[:60]) for text in texts])
        return torch.where(is_query[:, None], own + 1.1 * own.roll(1, dims=1), own)

    assert evaluate_retrieval(oracle, test) == {"recall@1": 1.0, "recall@10": 1.0, "mrr": 1.0}
    assert evaluate_retrieval(neighbour, test) == {"recall@1": 0.0, "recall@10": 1.0, "mrr": 0.5}


def test_an_ordinary_split_is_refused(testbed: CodeSearch) -> None:
    with pytest.raises(UserError, match="held-out split of code_search"):
        evaluate_retrieval(lambda texts: torch.rand(len(texts), 2), testbed.splits().test.subset([0, 1, 2, 3]))


def test_the_gate_passes_and_its_encoder_does_not_depend_on_the_batch(testbed: CodeSearch) -> None:
    gate = testbed.gate()
    assert gate.passed, gate.as_dict()
    texts = testbed.splits().validation.input[:9]
    teacher = testbed.teacher()
    together, alone = (testbed.encoder(teacher, batch_size=size)(texts) for size in (9, 1))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(9))


def test_the_student_is_the_teacher_without_its_middle(testbed: CodeSearch) -> None:
    teacher, student = testbed.teacher().state_dict(), testbed.student()
    assert student.config.num_hidden_layers == 2
    state = student.state_dict()
    assert torch.equal(state["encoder.layer.1.output.dense.weight"], teacher["encoder.layer.5.output.dense.weight"])
    assert not any(name.startswith("encoder.layer.2.") for name in state)
