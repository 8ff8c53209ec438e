"""The one contract of every teacher: ``source(batch, needs) -> signals``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from limbeck.signals import Batch, Signals


class Source(ABC):
    """Anything that gives teacher signals for a batch.

    A source is a plain object and never an ``nn.Module``, so that a student or distiller that holds one cannot
    count its weights among its own parameters or write them into a checkpoint.
    """

    @abstractmethod
    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        """Signals of at least the names in ``needs``, row for row with the batch; empty ``needs`` means all.

        A source that cannot answer every sample adds ``told``, bool ``[B]``, and objectives count no others.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A content hash: two sources with the same fingerprint say the same about the same batch."""

    def to(self, device: torch.device | str) -> Source:
        """Move what the source holds; returns itself."""
        return self

    def modules(self) -> list[nn.Module]:
        """The networks inside, for what counts, hashes or describes them."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What changes during training and belongs in a checkpoint; empty for a frozen source."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take up a state that :meth:`state_dict` gave."""

    def after_step(self, student: nn.Module, step: int) -> None:  # noqa: B027
        """Called after every optimiser step; ``step`` counts from 1."""

    def after_epoch(self, student: nn.Module, epoch: int) -> None:  # noqa: B027
        """Called after every epoch; ``epoch`` counts from 1."""
