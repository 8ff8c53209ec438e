"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.errors import UserError
from limbeck.signals import Batch, Signals, SparseLogits
from limbeck.sources.base import Source

SPACES = ("logits", "probabilities")


class Average(Source):
    """The weighted mean of several sources' signals.

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
        return {name: self._mean(name, [answer[name] for answer in answers]) for name in sorted(names)}

    def _mean(self, name: str, values: list[Tensor | SparseLogits]) -> Tensor:
        dense = [value.to_dense() if isinstance(value, SparseLogits) else value for value in values]
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
