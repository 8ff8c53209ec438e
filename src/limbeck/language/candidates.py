"""Classification by a language model: which of a few answers does it find likeliest?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.language.in_context import InContext
from limbeck.losses import cross_entropy

#: Texts in their contexts -> logits ``[B, X, V]`` at the texts' tokens.
Reader = Callable[[InContext], Tensor]


def candidate_scores(
    read: Reader,
    contexts: Sequence[Sequence[int]],
    queries: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    pad: int,
) -> Tensor:
    """Mean log-likelihood per token of every candidate answer, nats, ``[B, K]``; ``-inf`` where a row has fewer.

        score = -(sum of the answer's token losses) / (number of its tokens)

    The mean, not the sum, so that long answers are not punished for their length. For texts and their tokenizer see
    :func:`~limbeck.language.continuation_log_likelihood`.

    Args:
        read: runs a model, such as ``lambda given: full_context_logits(model, given.batch())["logits"]``.
        contexts, queries: token ids of every row; a query is not empty.
        candidates: of every row a few answers, each a list of token ids.
        pad: filler token.
    """
    if not len(contexts) == len(queries) == len(candidates):
        raise UserError("candidates", f"{len(candidates)} rows", f"one per query, {len(queries)}")
    if any(not answer for answers in candidates for answer in answers) or any(not answers for answers in candidates):
        raise UserError("candidates", "an empty answer or row", "one or more answers of one or more tokens in each row")
    rows = [(row, answer) for row, answers in enumerate(candidates) for answer in answers]
    given = InContext.pad(
        [contexts[row] for row, _ in rows],
        [[*queries[row], *answer] for row, answer in rows],
        [len(answer) for _, answer in rows],
        pad=pad,
    )
    scores = answer_scores(read(given), given)
    found = scores.new_full((len(queries), max(map(len, candidates))), -torch.inf)
    places = torch.tensor([place for answers in candidates for place in range(len(answers))])
    found[torch.tensor([row for row, _ in rows]), places] = scores
    return found


def answer_scores(logits: Tensor, given: InContext) -> Tensor:
    """Mean log-likelihood ``[B]`` of the answers' tokens under ``logits`` ``[B, X, V]``."""
    asked: dict[str, Any] = given.batch()
    values = cross_entropy(logits, asked["target"], mask=asked["mask"], reduction="none")
    counts: Tensor = asked["mask"].sum(1)
    return -values.sum(1) / counts


class CandidateClassifier:
    """Answers queries behind contexts with one of the candidates, in scikit-learn's manner.

    Args:
        read: see :func:`candidate_scores`. candidates: the answers, the same for every query, as token ids.
        pad: filler token.
    """

    def __init__(self, read: Reader, candidates: Sequence[Sequence[int]], *, pad: int) -> None:
        self.read, self.candidates, self.pad = read, candidates, pad

    @torch.no_grad()
    def decision_function(self, contexts: Sequence[Sequence[int]], queries: Sequence[Sequence[int]]) -> Tensor:
        """Scores ``[B, K]``."""
        return candidate_scores(self.read, contexts, queries, [self.candidates] * len(queries), pad=self.pad)

    def predict(self, contexts: Sequence[Sequence[int]], queries: Sequence[Sequence[int]]) -> list[int]:
        """The number of the best candidate of every query."""
        return self.decision_function(contexts, queries).argmax(1).tolist()
