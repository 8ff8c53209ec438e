"""Objectives that tell the samples of a batch apart."""

from __future__ import annotations

from torch import Tensor

from limbeck import losses
from limbeck.objectives.base import Needs, Objective, row_options
from limbeck.signals import Batch, Signals, dense


class InfoNCE(Objective):
    """Every query must find its own document among the batch's: supervised training on pairs, without a teacher.

    Args:
        temperature: a number, or the name of a student's signal that is a learned scalar.
        query, document: names of the student's signals.
        ids: what of a batch says that two samples are the same and so no negatives: ``id``, or ``target`` where that
            numbers captions or documents.
    """

    batchwise = True
    tables = (*Objective.tables, "temperature")

    def __init__(
        self,
        temperature: float | str = 0.05,
        *,
        query: str = "query",
        document: str = "document",
        ids: str = "id",
    ) -> None:
        super().__init__()
        self.temperature, self.ids, self.pair = temperature, ids, (query, document)
        self.needs = Needs(student=(*self.pair, *([temperature] if isinstance(temperature, str) else [])))

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        queries, documents = (dense(student, name) for name in self.pair)
        learned = isinstance(self.temperature, str)
        temperature = dense(student, str(self.temperature)) if learned else self.temperature
        options = {"temperature": temperature, "symmetric": True, "ids": batch.get(self.ids), **row_options(batch)}
        return {"info_nce": losses.info_nce(queries, documents, **options)}
