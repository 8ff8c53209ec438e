"""Candidate answers by their mean log-likelihood per token."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.language import CandidateClassifier, InContext, candidate_scores


def table(given: InContext) -> torch.Tensor:
    """A model whose next token depends on the last one alone: token t is followed by t + 1 with odds of e^2."""
    logits = torch.zeros(*given.text.shape, 6)
    return logits.scatter(-1, ((given.text + 1) % 6)[..., None], 2.0)


def test_scores_are_means_over_the_answers_tokens() -> None:
    hit = 2 - torch.tensor([2.0, 0, 0, 0, 0, 0]).logsumexp(0)
    miss = -torch.tensor([2.0, 0, 0, 0, 0, 0]).logsumexp(0)
    found = candidate_scores(table, [[], [1]], [[1], [4, 3]], [[[2], [2, 3], [5]], [[4, 1]]], pad=0)
    wanted = torch.tensor([[hit, hit, miss], [(hit + miss) / 2, -torch.inf, -torch.inf]])
    torch.testing.assert_close(found, wanted)


def test_a_long_answer_is_not_punished_for_its_length() -> None:
    chooser = CandidateClassifier(table, [[2, 3, 4, 5], [3]], pad=0)
    assert chooser.predict([[]], [[1]]) == [0]
    assert chooser.predict([[], []], [[2], [1]]) == [1, 0]


@pytest.mark.parametrize("answers", [[[]], [[[]]]])
def test_empty_answers_are_refused(answers: list[list[list[int]]]) -> None:
    with pytest.raises(UserError, match="candidates"):
        candidate_scores(table, [[]], [[1]], answers, pad=0)


def test_every_query_needs_candidates() -> None:
    with pytest.raises(UserError, match="candidates"):
        candidate_scores(table, [[]], [[1]], [], pad=0)
