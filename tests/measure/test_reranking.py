"""Retrieval in two stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.measure import retrieval
from limbeck.measure.reranking import rerank, retrieve_and_rerank, shortlist

GENERATOR = torch.Generator().manual_seed(0)
SIMILARITY = torch.randn(30, 30, generator=GENERATOR) + 1.5 * torch.eye(30)
OWN = torch.eye(30, dtype=torch.bool)


def oracle(queries: Tensor, candidates: Tensor) -> Tensor:
    return (queries == candidates).float()


def test_a_perfect_judge_finds_what_the_short_list_holds() -> None:
    for length in (1, 4, 30):
        held = float((shortlist(SIMILARITY, length) == torch.arange(30)[:, None]).any(1).double().mean())
        assert retrieve_and_rerank(SIMILARITY, oracle, OWN, length=length, at=(1,))["recall@1"] == held
    assert held == 1


def test_the_similarity_as_judge_changes_nothing() -> None:
    def judge(queries: Tensor, candidates: Tensor) -> Tensor:
        return SIMILARITY[queries, candidates]

    found = retrieve_and_rerank(SIMILARITY, judge, OWN, length=30, at=(1, 5), batch_size=7)
    # Unit queries and documents whose product is the similarity.
    plain = retrieval(SIMILARITY, torch.eye(30), similarity="dot", at=(1, 5))
    assert found == {name: plain[name] for name in found}


def test_the_judge_sees_the_short_list_alone_and_in_pieces() -> None:
    asked: list[int] = []

    def judge(queries: Tensor, candidates: Tensor) -> Tensor:
        asked.append(len(queries))
        return (10 * queries + candidates).float()

    candidates = shortlist(SIMILARITY, 3)
    scores = rerank(candidates, judge, batch_size=40)
    assert sum(asked) == 90
    assert max(asked) == 40
    assert torch.equal(scores, (10 * torch.arange(30)[:, None] + candidates).float())


def test_ties_count_against_and_duplicates_do_not() -> None:
    def indifferent(queries: Tensor, candidates: Tensor) -> Tensor:
        return torch.zeros(len(queries))

    assert retrieve_and_rerank(SIMILARITY, indifferent, OWN, length=5, at=(1, 5)) == pytest.approx(
        {
            "recall@1": 0.0,
            "recall@5": float((shortlist(SIMILARITY, 5) == torch.arange(30)[:, None]).any(1).double().mean()),
        }
    )
    every = torch.ones(30, 30, dtype=torch.bool)
    assert retrieve_and_rerank(SIMILARITY, indifferent, every, length=5, at=(1,))["recall@1"] == 1


def test_wrong_use_is_named() -> None:
    with pytest.raises(UserError, match="length"):
        shortlist(SIMILARITY, 31)
    with pytest.raises(UserError, match="at"):
        retrieve_and_rerank(SIMILARITY, oracle, OWN, length=3, at=(1, 5))
    with pytest.raises(UserError, match="right"):
        retrieve_and_rerank(SIMILARITY, oracle, OWN[:5], length=3, at=(1,))
