"""BM25 against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.measure.bm25 import BM25, recall_of_scores

DOCUMENTS = ["The cat sat on the mat.", "A dog sat.", "Nothing here"]


def by_the_formula(query: str, document: str, k1: float = 1.5, b: float = 0.75) -> float:
    texts = [text.lower().replace(".", "").split() for text in DOCUMENTS]
    words, total = document.lower().replace(".", "").split(), 0.0
    mean = sum(map(len, texts)) / len(texts)
    for word in set(query.lower().split()):
        held = sum(word in text for text in texts)
        idf = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
        tf = words.count(word)
        total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(words) / mean))
    return total


def test_scores_follow_the_formula() -> None:
    queries = ["cat sat", "the the unknown", "DOG"]
    found = BM25().fit(DOCUMENTS).scores(queries)
    wanted = torch.tensor([[by_the_formula(q, d) for d in DOCUMENTS] for q in queries], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)
    assert BM25(b=0.0).fit(DOCUMENTS).scores(["sat"])[0, 0] == BM25(b=0.0).fit(DOCUMENTS).scores(["sat"])[0, 1]


def test_recall_counts_ties_against_the_query() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 0.0]])
    assert recall_of_scores(scores, at=(1, 2)) == {"recall@1": 0.5, "recall@2": 1.0}
    assert recall_of_scores(scores, torch.tensor([1, 0]), at=(1,)) == {"recall@1": 0.0}
    model = BM25().fit(DOCUMENTS)
    assert recall_of_scores(model.scores(["", "dog", "nothing"]))["recall@1"] == pytest.approx(2 / 3)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="documents"):
        BM25().fit([])
    with pytest.raises(UserError, match="k1"):
        BM25(b=2)
    assert BM25().fit(["", ""]).scores(["a"]).tolist() == [[0.0, 0.0]]
