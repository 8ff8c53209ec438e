"""Objectives that tell the samples of a batch apart."""

from __future__ import annotations

from torch import Tensor

from limbeck import losses
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.signals import Batch, Signals, dense


class InfoNCE(Objective):
    """Every query must find its own document among the batch's: supervised training on pairs, without a teacher."""

    batchwise = True

    def __init__(self, temperature: float = 0.05, *, query: str = "query", document: str = "document") -> None:
        super().__init__()
        self.temperature = temperature
        self.needs = Needs(student=(query, document))

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        queries, documents = (dense(student, name) for name in self.needs.student)
        options = {"temperature": self.temperature, "symmetric": True, "ids": batch.get("id"), **row_options(batch)}
        return {"info_nce": losses.info_nce(queries, documents, **options)}
