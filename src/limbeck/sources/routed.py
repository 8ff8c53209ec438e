"""Several teachers, each for its own samples: a data column says which."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.errors import UserError
from limbeck.signals import TOLD, Batch, HeadLogits, Signals, SparseLogits, batch_length, pick
from limbeck.sources.base import Source
from limbeck.sources.cached import select


class Routed(Source):
    """Every sample is answered by the source that a column of the batch names.

    >>> Routed({"code": Cached("code/"), "chat": Live(chat)}, "domain")   # batch["domain"] is ["chat", "code", ...]

    The batch is split by route, each source is asked once about its own samples, and the answers are put together in
    the batch's order. Of sparse logits the shortest ``k`` of a batch's routes is kept, with the others in the rest.

    Args:
        sources: by route, a word or a whole number.
        column: of the batch, one route per sample: a list of words, or an integer tensor.

    Raises:
        UserError: a sample names a route that there is no source of.
    """

    def __init__(self, sources: Mapping[Any, Source], column: str) -> None:
        if not sources:
            raise UserError("sources", "none", "at least one source, by its route")
        self.sources, self.column = dict(sources), column

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        routes = self._routes(batch)
        answers: list[tuple[Tensor, Signals]] = []
        for route, source in self.sources.items():
            rows = torch.tensor([one == route for one in routes])
            if rows.any():
                answers.append((rows.nonzero().flatten(), source(select(batch, rows), needs)))
        if not answers:
            raise UserError("batch", "empty", "at least one sample")
        common = set.intersection(*(set(signals) for _, signals in answers))
        names = tuple(needs) or tuple(sorted(common))
        if any(TOLD in signals for _, signals in answers):
            names = tuple(dict.fromkeys((*names, TOLD)))
            answers = [(rows, {TOLD: torch.ones(len(rows), dtype=torch.bool), **signals}) for rows, signals in answers]
        picked = [(rows, pick(signals, names, "teacher")) for rows, signals in answers]
        return {name: _joined(name, [(rows, signals[name]) for rows, signals in picked]) for name in names}

    def _routes(self, batch: Batch) -> list[Hashable]:
        if self.column not in batch:
            raise UserError("batch", ", ".join(map(str, batch)), f"a batch with {self.column}, which names the teacher")
        given = batch[self.column]
        routes = given.tolist() if isinstance(given, Tensor) else list(given)
        if len(routes) != batch_length(batch):
            raise UserError(self.column, f"{len(routes)} routes", f"{batch_length(batch)}, one per sample")
        unknown = [route for route in routes if route not in self.sources]
        if unknown:
            raise UserError(f"{self.column} of a sample", unknown[0], [str(route) for route in self.sources])
        return routes

    def fingerprint(self) -> str:
        by_route = [[str(route), source.fingerprint()] for route, source in self.sources.items()]
        return fingerprint_text("routed", self.column, sorted(by_route))

    def to(self, device: torch.device | str) -> Routed:
        for source in self.sources.values():
            source.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [module for source in self.sources.values() for module in source.modules()]

    def state_dict(self) -> dict[str, Any]:
        states = {str(route): source.state_dict() for route, source in self.sources.items()}
        return {route: state for route, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for route, source in self.sources.items():
            if str(route) in state:
                source.load_state_dict(state[str(route)])

    def after_step(self, student: nn.Module, step: int) -> None:
        for source in self.sources.values():
            source.after_step(student, step)

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        for source in self.sources.values():
            source.after_epoch(student, epoch)


def _joined(name: str, parts: list[tuple[Tensor, Tensor | SparseLogits | HeadLogits]]) -> Tensor | SparseLogits:
    sparse = [(rows, value) for rows, value in parts if isinstance(value, SparseLogits)]
    if sparse and (len(sparse) < len(parts) or len({value.size for _, value in sparse}) > 1):
        kinds = sorted({f"top-k of {v.size}" if isinstance(v, SparseLogits) else "whole" for _, v in parts})
        raise UserError(f"teacher signal {name}", " and ".join(kinds), "one kind and one vocabulary for all routes")
    if sparse:
        k = min(value.values.shape[-1] for _, value in sparse)
        cut = [(rows, value.top(k)) for rows, value in sparse]
        values, indices, rest = (
            _placed(name, [(rows, getattr(value, part)) for rows, value in cut])
            for part in ("values", "indices", "rest")
        )
        return SparseLogits(values, indices, rest, sparse[0][1].size)
    dense = [(rows, value.to_dense() if isinstance(value, HeadLogits) else value) for rows, value in parts]
    return _placed(name, [(rows, value) for rows, value in dense if isinstance(value, Tensor)])


def _placed(name: str, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    shapes = {tuple(value.shape[1:]) for _, value in parts}
    if len(shapes) > 1:
        raise UserError(f"teacher signal {name}", sorted(shapes), "one shape for all routes")
    device = parts[0][1].device
    order = torch.cat([rows for rows, _ in parts]).to(device)
    return torch.cat([value.to(device) for _, value in parts])[order.argsort()]
