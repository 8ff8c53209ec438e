"""The distiller of language models: prompts come in, a writer makes the text, teacher and student read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.views import view_seeds
from limbeck.engine import Distiller
from limbeck.language.alignment import AlignmentReport
from limbeck.language.checks import check_alignment, check_tokenizers, check_writer
from limbeck.language.retokenizer import Retokenizer, prompts_of
from limbeck.language.sequences import Sequences, answer_logits
from limbeck.language.writers import DataText, Step, Writer
from limbeck.models.compare import first_logits
from limbeck.objectives.base import Objective
from limbeck.signals import Batch, Forward, Signals
from limbeck.sources import Live, Source
from limbeck.tokens import vocabulary_size


class SequenceDistiller(Distiller):
    """A :class:`~limbeck.engine.Distiller` on batches whose ``input`` has the columns of :class:`Sequences`.

    In a step the writer makes a text from the batch's prompts and answers, both networks read it, and the objective
    compares their ``logits`` ``[B, A, V]`` on the answers, with ``target`` and ``mask`` of that text in the batch, and
    ``draws`` ``[B]``, a seed per row for whatever is random. An
    objective that needs ``data_logits`` (:class:`~limbeck.objectives.DataCrossEntropy`) gets a pass over the data too.

    Args:
        student, objective, teacher: as in ``Distiller``; a plain network is run by
            :func:`~limbeck.language.answer_logits`.
        tokenizers: the student's and the teacher's: their content is compared, and logits are cut to their size.
        retokenizer: for a teacher of another tokenizer. It reads every text in its own tokens, and objectives compare
            spans of both (:class:`~limbeck.objectives.LikelihoodMatching`,
            :class:`~limbeck.objectives.UniversalLogitDistance`); any other objective on the teacher is refused. A
            column ``teacher_prompt`` of the input, with its mask, is the prompt by the teacher's own chat template.
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
        tokenizers: tuple[Any, Any] | None = None,
        retokenizer: Retokenizer | None = None,
        writer: Writer | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        forward = answer_logits if tokenizers is None else cut_logits(answer_logits, tokenizers[0])
        network = teacher if isinstance(teacher, nn.Module) else None
        if retokenizer is None and (network is not None or tokenizers is not None):
            check_tokenizers(student, network, tokenizers)
        if network is not None:
            teacher = Live(network, forward=forward)
        super().__init__(student, objective, teacher, **{"forward": forward, **options})
        self.retokenizer = retokenizer
        self.alignment: AlignmentReport | None = None
        self.writer, self.seed = writer or DataText(), seed
        check_writer(objective, self.writer)
        check_alignment(objective, self.writer, retokenizer is not None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(self.written(batch), batch_idx)
        self.latest_terms |= {name: value.detach() for name, value in self.writer.observed().items()}
        if self.alignment is not None:
            found = self.alignment.summary()
            self.latest_terms |= {f"spans/{name}": torch.tensor(value) for name, value in found.items()}
        return loss

    def written(self, batch: Batch) -> dict[str, Any]:
        """The batch with the writer's text."""
        given = Sequences.of(batch["input"]).trimmed()
        views = view_seeds(self.seed, self.steps_done, batch["id"])
        with torch.no_grad():
            # A teacher of another tokenizer cannot read the student's tokens to correct them.
            reader = self.teacher if self.retokenizer is None else None
            text = self.writer(Step(self.student, reader, given, views, batch["id"], self.progress))
        return self._joined(text, given, batch, views)

    def plain(self, batch: Batch) -> dict[str, Any]:
        """The batch with the data's own text, for checks and validation."""
        given = Sequences.of(batch["input"]).trimmed()
        return self._joined(given, given, batch, view_seeds(self.seed, 0, batch["id"]))

    def _joined(self, text: Sequences, given: Sequences, batch: Batch, views: Tensor) -> dict[str, Any]:
        made, data = text.batch(), given.batch()
        # Other columns go on with their samples: a teacher may be chosen by one.
        others = {name: value for name, value in batch.items() if name not in ("input", "target", "mask")}
        joined = {**others, **made, "draws": views, "data": made if text is given else data}
        if self.retokenizer is None:
            return joined
        aligned = self.retokenizer(text, prompts_of(batch["input"]))
        self.alignment = aligned.report
        return {**joined, **aligned.entries()}

    def teacher_signals(self, batch: Batch) -> Signals:
        if "teacher_input" in batch:
            batch = {**batch, **batch["teacher_input"]}
        return super().teacher_signals(batch)

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


def cut_logits(forward: Forward, tokenizer: Any) -> Forward:
    """The same run with logits of the tokenizer's own tokens alone, without a table's padding."""
    return first_logits(forward, vocabulary_size(tokenizer))
