"""BM25: how well words alone find a document, and what they weigh. No network has a part in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.words import split_words
from limbeck.errors import UserError


class BM25:
    """Okapi BM25 (Robertson and Zaragoza, 2009) over the words of some documents.

    ``score(q, d) = sum_w idf(w) tf(w, d) (k1 + 1) / (tf(w, d) + k1 (1 - b + b |d| / mean |d|))`` over the different
    words w of the query, ``idf(w) = log(1 + (N - n(w) + 0.5) / (n(w) + 0.5))``, which is never negative.

    Words are :func:`~limbeck.data.words.split_words`: runs of letters and digits in lower case, no stemming.
    """

    def __init__(self, *, k1: float = 1.5, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError("k1, b", (k1, b), "k1 of 0 or more, b from 0 to 1")
        self.k1, self.b = k1, b

    def fit(self, documents: Sequence[str]) -> BM25:
        """Count the words of ``documents``."""
        if not documents:
            raise UserError("documents", "none", "at least one")
        counts = [Counter(split_words(text)) for text in documents]
        self.documents_ = len(counts)
        self.frequency_ = Counter(word for row in counts for word in row)
        sizes = torch.tensor([sum(row.values()) for row in counts], dtype=torch.float64)
        lengths = self.k1 * (1 - self.b + self.b * sizes / sizes.mean().clamp_min(1))
        self.postings_: dict[str, tuple[Tensor, Tensor]] = {}
        holders: dict[str, list[tuple[int, int]]] = {}
        for place, row in enumerate(counts):
            for word, count in row.items():
                holders.setdefault(word, []).append((place, count))
        for word, held in holders.items():
            places = torch.tensor([place for place, _ in held])
            counted = torch.tensor([count for _, count in held], dtype=torch.float64)
            weight = counted * (self.k1 + 1) / (counted + lengths[places])
            self.postings_[word] = (places, self.idf(word) * weight)
        return self

    def idf(self, word: str) -> float:
        """Inverse document frequency of a word, in lower case; words that no document has weigh most."""
        held = self.frequency_.get(word, 0)
        return math.log(1 + (self.documents_ - held + 0.5) / (held + 0.5))

    def scores(self, queries: Sequence[str]) -> Tensor:
        """Of every query and document, float64 ``[Q, N]``."""
        found = torch.zeros(len(queries), self.documents_, dtype=torch.float64)
        for row, query in zip(found, queries):
            for word in dict.fromkeys(split_words(query)):
                if word in self.postings_:
                    places, weights = self.postings_[word]
                    row[places] += weights
        return found


def recall_of_scores(scores: Tensor, right: Tensor | None = None, at: Sequence[int] = (1,)) -> dict[str, float]:
    """``recall@k`` of scores ``[Q, N]``; query i wants document ``right[i]`` (by default i). Ties count against it."""
    wanted = torch.arange(len(scores)) if right is None else right
    own = scores.gather(1, wanted[:, None])
    rank = (scores >= own).sum(1)
    return {f"recall@{k}": float((rank <= k).double().mean()) for k in at}
