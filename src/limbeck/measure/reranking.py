"""Retrieval in two stages: a cheap similarity makes a short list, a costly judge puts it in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError

#: Query numbers ``[n]`` and candidate numbers ``[n]`` -> scores ``[n]``, the higher the better.
Judge = Callable[[Tensor, Tensor], Tensor]


def shortlist(similarity: Tensor, length: int) -> Tensor:
    """The ``length`` most similar candidates of every query, most similar first: int64 ``[Q, length]``."""
    if similarity.dim() != 2 or not 1 <= length <= similarity.shape[1]:
        raise UserError("length", length, f"1 to the number of candidates, of similarities {list(similarity.shape)}")
    return similarity.topk(length, dim=1).indices


def rerank(candidates: Tensor, judge: Judge, *, batch_size: int = 1024) -> Tensor:
    """The judge's scores of all pairs of a query with its ``candidates`` ``[Q, K]``: ``[Q, K]``."""
    queries = torch.arange(len(candidates)).unsqueeze(1).expand_as(candidates).flatten()
    pairs = zip(queries.split(batch_size), candidates.flatten().split(batch_size), strict=True)
    return torch.cat([judge(query, candidate) for query, candidate in pairs]).view(candidates.shape)


def retrieve_and_rerank(
    similarity: Tensor,
    judge: Judge,
    right: Tensor,
    *,
    length: int,
    at: Sequence[int] = (1, 5),
    batch_size: int = 1024,
) -> dict[str, float]:
    """``recall@k`` when the ``length`` most similar candidates are put in order by ``judge``.

    Args:
        similarity: ``[Q, N]``.
        judge: see :data:`Judge`; called with at most ``batch_size`` pairs, ``Q length`` in all.
        right: bool ``[Q, N]``: which candidates are right; identical ones all are.
        length: of the short list; a right candidate outside it is lost.
        at: depths, none above ``length``.

    Ties count against the query. Other right candidates never push a right one down.
    """
    if right.shape != similarity.shape:
        raise UserError("right", list(right.shape), f"one per pair, {list(similarity.shape)}")
    if max(at) > length:
        raise UserError("at", max(at), f"at most the length of the short list, {length}")
    candidates = shortlist(similarity, length)
    scores, hits = rerank(candidates, judge, batch_size=batch_size), right.gather(1, candidates)
    best = scores.masked_fill(~hits, -torch.inf).amax(1)
    rank = ((scores >= best[:, None]) & ~hits).sum(1) + 1
    rank = torch.where(hits.any(1), rank, similarity.shape[1] + 1)
    return {f"recall@{k}": float((rank <= k).double().mean()) for k in at}
