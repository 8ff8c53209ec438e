"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.errors import UserError
from limbeck.signals import TOLD, Batch, HeadLogits, Signals, SparseLogits, dense
from limbeck.sources.base import Source

SPACES = ("logits", "probabilities")


class Average(Source):
    """The weighted mean of several sources' signals.

    Sparse logits of all sources stay sparse: as many classes as the longest of them keeps, the most probable of all
    that any keeps, and all others in the rest. A source that did not keep a class is taken to give it an even share of
    its own rest (:meth:`~limbeck.signals.SparseLogits.to_dense`), so that this is the mean of whole distributions.

    Args:
        sources: at least one.
        weights: one non-negative number per source; they are scaled to sum to 1. Equal by default.
        space: how ``logits`` are averaged: as ``logits``, or as ``probabilities`` (the mixture, whose logarithm is
            given as logits). Other signals are averaged as they are.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float] | None = None, *, space: str = "logits"
    ) -> None:
        if not sources:
            raise UserError("sources", "none", "at least one source")
        if space not in SPACES:
            raise UserError("space", space, SPACES)
        given = list(weights) if weights is not None else [1.0] * len(sources)
        if len(given) != len(sources) or any(not w >= 0 for w in given) or not 0 < sum(given) < float("inf"):
            raise UserError("weights", given, f"{len(sources)} non-negative numbers, not all zero")
        self.sources, self.space = list(sources), space
        self.weights = [weight / sum(given) for weight in given]

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        answers = [source(batch, needs) for source in self.sources]
        names = set(needs) or set.intersection(*(set(answer) for answer in answers))
        mean = {name: self._mean(name, [answer[name] for answer in answers]) for name in sorted(names - {TOLD})}
        told = [dense(answer, TOLD) for answer in answers if TOLD in answer]
        return {**mean, TOLD: torch.stack(told).all(0)} if told else mean

    def _mean(self, name: str, values: list[Tensor | SparseLogits | HeadLogits]) -> Tensor | SparseLogits:
        sparse = [value for value in values if isinstance(value, SparseLogits)]
        if len(sparse) == len(values) and len({(*one.rest.shape, one.size) for one in sparse}) == 1:
            return _sparse_mean(sparse, self.weights, mixture=self.space == "probabilities")
        dense = [value if isinstance(value, Tensor) else value.to_dense() for value in values]
        if len({tuple(value.shape) for value in dense}) > 1:
            raise UserError(
                f"teacher signal {name}", [list(value.shape) for value in dense], "one shape for all sources"
            )
        if name == "logits" and self.space == "probabilities":
            logs = [v.float().log_softmax(-1) + torch.tensor(w).log() for v, w in zip(dense, self.weights, strict=True)]
            return torch.stack(logs).logsumexp(0)
        return torch.stack([weight * value for value, weight in zip(dense, self.weights, strict=True)]).sum(0)

    def fingerprint(self) -> str:
        return fingerprint_text(self.space, self.weights, [source.fingerprint() for source in self.sources])

    def to(self, device: torch.device | str) -> Average:
        for source in self.sources:
            source.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [module for source in self.sources for module in source.modules()]

    def state_dict(self) -> dict[str, object]:
        states = {str(index): state for index, source in enumerate(self.sources) if (state := source.state_dict())}
        return dict(states)

    def load_state_dict(self, state: dict[str, object]) -> None:
        for index, part in state.items():
            self.sources[int(index)].load_state_dict(part)  # type: ignore[arg-type]

    def after_step(self, student: nn.Module, step: int) -> None:
        for source in self.sources:
            source.after_step(student, step)

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        for source in self.sources:
            source.after_epoch(student, epoch)


def _sparse_mean(sources: list[SparseLogits], weights: list[float], *, mixture: bool) -> SparseLogits:
    """The mean of probabilities or of their logarithms, over the classes that any source keeps and all others."""
    shares = [(one, weight) for one, weight in zip(sources, weights, strict=True) if weight > 0]
    classes = torch.cat([one.indices for one, _ in shares], -1).sort(dim=-1).values
    repeated = torch.zeros_like(classes, dtype=torch.bool)
    repeated[..., 1:] = classes[..., 1:] == classes[..., :-1]
    size = sources[0].size
    others = (size - (~repeated).sum(-1)).to(torch.float32).log()
    inside, outside = [], []
    for one, weight in shares:
        spread = one.rest - math.log(max(size - one.values.shape[-1], 1))
        same = classes.unsqueeze(-1) == one.indices.unsqueeze(-2)
        kept = one.values.gather(-1, same.int().argmax(-1))
        said = torch.where(same.any(-1), kept, spread.unsqueeze(-1))
        inside.append(said + math.log(weight) if mixture else said * weight)
        outside.append(spread + math.log(weight) if mixture else spread * weight)
    combine = (lambda parts: torch.stack(parts).logsumexp(0)) if mixture else (lambda parts: torch.stack(parts).sum(0))
    values = torch.where(repeated, -torch.inf, combine(inside))
    rest = combine(outside) + others
    total = torch.logaddexp(values.logsumexp(-1), rest)
    whole = SparseLogits(values - total.unsqueeze(-1), classes, rest - total, size)
    return whole.top(max(one.values.shape[-1] for one, _ in shares))
