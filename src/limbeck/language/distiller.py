"""The distiller of language models: prompts come in, a writer makes the text, teacher and student read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.views import view_seeds
from limbeck.engine import Distiller
from limbeck.errors import UserError
from limbeck.language.sequences import Sequences, answer_logits
from limbeck.language.writers import DataText, Step, Writer
from limbeck.objectives.base import Objective
from limbeck.signals import Batch, Signals
from limbeck.sources import Live, Source


class SequenceDistiller(Distiller):
    """A :class:`~limbeck.engine.Distiller` on batches whose ``input`` has the columns of :class:`Sequences`.

    In a step the writer makes a text from the batch's prompts and answers, both networks read it, and the objective
    compares their ``logits`` ``[B, A, V]`` on the answers, with ``target`` and ``mask`` of that text in the batch, and
    ``draws`` ``[B]``, a seed per row for whatever is random. An
    objective that needs ``data_logits`` (:class:`~limbeck.objectives.DataCrossEntropy`) gets a pass over the data too.

    Args:
        student, objective, teacher: as in ``Distiller``; a plain network is run by
            :func:`~limbeck.language.answer_logits`.
        writer: whose text; the data's by default.
        seed: of everything that is drawn while writing. A step's draws depend on it, the number of the step and the
            ids of the samples alone.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teacher: Source | nn.Module | None = None,
        *,
        writer: Writer | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(teacher, nn.Module):
            check_tokenizers(student, teacher)
            teacher = Live(teacher, forward=answer_logits)
        super().__init__(student, objective, teacher, **{"forward": answer_logits, **options})
        self.writer, self.seed = writer or DataText(), seed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(self.written(batch), batch_idx)
        self.latest_terms |= {name: value.detach() for name, value in self.writer.observed().items()}
        return loss

    def written(self, batch: Batch) -> dict[str, Any]:
        """The batch with the writer's text."""
        given = Sequences.of(batch["input"]).trimmed()
        views = view_seeds(self.seed, self.steps_done, batch["id"])
        with torch.no_grad():
            text = self.writer(Step(self.student, self.teacher, given, views, batch["id"], self.progress))
        return self._joined(text, given, batch, views)

    def plain(self, batch: Batch) -> dict[str, Any]:
        """The batch with the data's own text, for checks and validation."""
        given = Sequences.of(batch["input"]).trimmed()
        return self._joined(given, given, batch, view_seeds(self.seed, 0, batch["id"]))

    def _joined(self, text: Sequences, given: Sequences, batch: Batch, views: Tensor) -> dict[str, Any]:
        made, data = text.batch(), given.batch()
        # Other columns go on with their samples: a teacher may be chosen by one.
        others = {name: value for name, value in batch.items() if name not in ("input", "target", "mask")}
        return {**others, **made, "draws": views, "data": made if text is given else data}

    def student_signals(self, batch: Batch) -> Signals:
        signals = super().student_signals(batch)
        if "data_logits" not in self.objective.needs.student:
            return signals
        if batch["data"]["target"] is batch["target"]:
            return {**signals, "data_logits": signals["logits"]}
        with self.in_view():
            return {**signals, "data_logits": self.run_student(self.student, batch["data"])["logits"]}

    def build(self, batch: Batch) -> SequenceDistiller:
        """See :class:`~limbeck.engine.Distiller`."""
        super().build(self.plain(batch) if "prompt" in batch["input"] else batch)
        return self

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(self.plain(batch), batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["limbeck"]["writer"] = self.writer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.writer.load_state_dict(checkpoint["limbeck"].get("writer", {}))


def check_tokenizers(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse two transformers models of different vocabularies: what one calls token 17 is another word to the other.

    Equal sizes do not prove equal tokenizers; where these are at hand compare
    :func:`limbeck.cache.fingerprint_tokenizer` of both.
    """
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            "teacher's vocabulary", f"{sizes[1]} tokens", f"the student's, {sizes[0]}", "both must use one tokenizer"
        )
