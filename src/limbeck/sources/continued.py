"""A teacher whose first part answered before: the later parts go on from its stored signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_module, fingerprint_text
from limbeck.signals import Batch, Signals, pick
from limbeck.sources.base import Source


class Continued(Source):
    """``rest(module, first's signals, batch)``: a light head run live on a heavy trunk's stored output.

    The trunk's answer to an image is one; what the head is asked about it (prompts) may change in every step.

    Args:
        first: source of the trunk's signals, usually :class:`~limbeck.sources.cached.Cached`.
        module: what goes on from there; it is frozen and put into eval mode.
        rest: a function of (module, signals, batch) that gives named tensors; first's own are passed on with them.
    """

    def __init__(
        self, first: Source, module: nn.Module, rest: Callable[[Any, Signals, Batch], Mapping[str, Tensor]]
    ) -> None:
        self.first, self.module, self.rest = first, module.requires_grad_(False).eval(), rest

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        stored = self.first(batch)
        with torch.no_grad():
            signals = {**stored, **self.rest(self.module, stored, batch)}
        return pick(signals, tuple(needs), "teacher") if needs else signals

    def fingerprint(self) -> str:
        named = inspect.unwrap(self.rest)
        return fingerprint_text(
            "continued", self.first.fingerprint(), fingerprint_module(self.module), getattr(named, "__qualname__", "")
        )

    def to(self, device: torch.device | str) -> Continued:
        self.first.to(device)
        self.module.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [*self.first.modules(), self.module]
