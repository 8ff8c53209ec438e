"""Whose text a student is taught on: the data's, its own, its own with corrections, or a changing mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.language.generation import Generator
from limbeck.language.revision import Reviser
from limbeck.language.sequences import COLUMNS, Sequences
from limbeck.schedules import Schedule, at
from limbeck.sources import Source

_DECISIONS = 1 << 21


class Step(NamedTuple):
    """What a writer is given in a training step.

    ``views`` ``[B]`` are what everything random is drawn from, so that a step is a function of its samples and number;
    ``ids`` ``[B]`` are the samples', ``progress`` is the training's, from 0 to 1.
    """

    student: nn.Module
    teacher: Source | None
    given: Sequences
    views: Tensor
    ids: Tensor
    progress: float = 0.0


class Writer(ABC):
    """Makes the text of a training step from the data's prompts and answers."""

    @abstractmethod
    def __call__(self, step: Step) -> Sequences:
        """The text to teach on."""

    def observed(self) -> dict[str, Tensor]:
        """Numbers of the latest text for the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What changes while training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up a state that :meth:`state_dict` gave."""


class DataText(Writer):
    """The data's own answers."""

    def __call__(self, step: Step) -> Sequences:
        return step.given


class StoredText(Writer):
    """Answers that were written before, such as the teacher's: row by row ``written``, of the samples ``ids``."""

    def __init__(self, written: Sequences, ids: Tensor) -> None:
        if len(written) != len(ids):
            raise UserError("ids", len(ids), f"one per text, {len(written)}")
        self.written, self.rows = written, {int(number): row for row, number in enumerate(ids)}

    def __call__(self, step: Step) -> Sequences:
        try:
            rows = [self.rows[int(number)] for number in step.ids]
        except KeyError as error:
            raise UserError("sample", error.args[0], "a sample that there is a stored text of") from None
        found = self.written.select(torch.tensor(rows))
        return Sequences.of({name: value.to(step.views.device) for name, value in found.columns().items()}).trimmed()


class TeacherText(DataText):
    """The data's prompts with answers that the teacher wrote before (:func:`~limbeck.language.write_texts`): whoever
    loads the data has put them in the place of the data's own.

    Args:
        greedy: the most probable tokens instead of samples.
    """

    def __init__(self, greedy: bool = False) -> None:
        self.greedy = greedy


class OnPolicy(Writer):
    """The student's samples to the data's prompts."""

    def __init__(self, decoding: Generator) -> None:
        self.decoding = decoding

    def __call__(self, step: Step) -> Sequences:
        return self.decoding(step.student, without_answers(step.given), step.views)


class Revised(Writer):
    """What another writer gives, corrected by the teacher; see :class:`~limbeck.language.Reviser`."""

    def __init__(self, writer: Writer, reviser: Reviser) -> None:
        self.writer, self.reviser = writer, reviser

    def __call__(self, step: Step) -> Sequences:
        if step.teacher is None:
            raise UserError("teacher", "none", "a live source, which reads and corrects the text")
        return self.reviser(step.student, step.teacher, self.writer(step), step.views)

    def observed(self) -> dict[str, Tensor]:
        found = self.writer.observed()
        return found | (self.reviser.corrections[0].summary() if self.reviser.corrections else {})

    def state_dict(self) -> dict[str, Any]:
        return self.writer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.writer.load_state_dict(state)


class Mixed(Writer):
    """Some steps write, the others read the data: a step is written with probability ``share``.

    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024, with its share lambda.

    Args:
        writer: of those steps. share: a number from 0 to 1, or a schedule of progress.
    """

    def __init__(self, writer: Writer, share: float | Schedule = 0.5) -> None:
        for value in (at(share, 0.0), at(share, 1.0)):
            if not 0 <= value <= 1:
                raise UserError("share", value, "0 to 1")
        self.writer, self.share, self.written = writer, share, False

    def __call__(self, step: Step) -> Sequences:
        self.written = float(uniform(step.views[:1], _DECISIONS)) < at(self.share, step.progress)
        return self.writer(step) if self.written else step.given

    def observed(self) -> dict[str, Tensor]:
        found = {"text_new": torch.tensor(float(self.written)), "text_data": torch.tensor(float(not self.written))}
        return {**self.writer.observed(), **found}

    def state_dict(self) -> dict[str, Any]:
        return self.writer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.writer.load_state_dict(state)


class Replayed(Writer):
    """Old texts again: some steps write anew, some draw from a buffer, the rest is data.

    With s the share of the student's text and t the progress, a step is written anew with probability ``s (1 - t)``, or
    ``s`` while the buffer is not full, comes from the buffer with what is missing to ``s``, and else is the data's.
    s = 1 is replay alone. s may be an :class:`AdaptiveShare`.

    Source: Ko et al., DistiLLM, ICML 2024, with its released loop (``replay_ratio`` decreasing).

    Args:
        writer: of new texts.
        capacity: texts in the buffer; the oldest go first.
        share: s; a number, a schedule of progress, or an :class:`AdaptiveShare`.
    """

    def __init__(self, writer: Writer, capacity: int, share: float | Schedule | AdaptiveShare = 1.0) -> None:
        self.writer, self.buffer, self.share = writer, ReplayBuffer(capacity), share
        self.latest = "data"

    def __call__(self, step: Step) -> Sequences:
        share = self.share.value if isinstance(self.share, AdaptiveShare) else at(self.share, step.progress)
        drawn = float(uniform(step.views[:1], _DECISIONS))
        if drawn >= share:
            self.latest = "data"
            return step.given
        if drawn < share * (1 - step.progress) or not self.buffer.full:
            self.latest = "new"
            written = self.writer(step)
            self.buffer.add(written)
            return written
        self.latest = "old"
        return self.buffer.draw(step.views)

    def observed(self) -> dict[str, Tensor]:
        found = {f"text_{name}": torch.tensor(float(self.latest == name)) for name in ("new", "old", "data")}
        return {**self.writer.observed(), **found}

    def state_dict(self) -> dict[str, Any]:
        share = {"share": self.share.state_dict()} if isinstance(self.share, AdaptiveShare) else {}
        return {"buffer": self.buffer.state_dict(), "writer": self.writer.state_dict(), **share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])
        self.writer.load_state_dict(state["writer"])
        if isinstance(self.share, AdaptiveShare):
            self.share.load_state_dict(state["share"])


class AdaptiveShare:
    """The share of student-written text, which grows when the validation loss does.

    Tell it every validation loss with :meth:`observe`, from the ``validate`` function of :func:`~limbeck.engine.fit`.
    It grows by ``step``, up to 1, when the loss is at least ``tolerance`` above the first one, or above the last one
    that made it grow.

    Source: Ko et al., DistiLLM, ICML 2024, released loop (``init_threshold``, ``loss_eps``).
    """

    def __init__(self, start: float = 0.0, step: float = 0.1, tolerance: float = 0.1) -> None:
        if not 0 <= start <= 1 or step <= 0:
            raise UserError("start, step", (start, step), "a share from 0 to 1 and a positive step")
        self.value, self.step, self.tolerance = start, step, tolerance
        self.compared: float | None = None

    def observe(self, loss: float) -> None:
        """Take notice of a validation loss."""
        if self.compared is None:
            self.compared = loss
        elif loss >= self.compared + self.tolerance:
            self.value, self.compared = min(self.value + self.step, 1.0), loss

    def state_dict(self) -> dict[str, float | None]:
        """The share and the loss that it is compared with."""
        return {"value": self.value, "compared": self.compared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.value, self.compared = state["value"], state["compared"]


class ReplayBuffer:
    """The latest ``capacity`` texts, padded to common widths."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError("capacity", capacity, "1 or more")
        self.capacity = capacity
        self.rows: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def full(self) -> bool:
        """Whether old texts make room for new ones."""
        return len(self.rows) >= self.capacity

    def add(self, written: Sequences) -> None:
        """Keep the texts of a batch."""
        for prompt, prompt_mask, answer, answer_mask in zip(
            written.prompt, written.prompt_mask, written.answer, written.answer_mask
        ):
            row = {"prompt": prompt[prompt_mask], "answer": answer[answer_mask]}
            self.rows.append({name: value.detach().cpu().clone() for name, value in row.items()})
        del self.rows[: -self.capacity]

    def draw(self, views: Tensor) -> Sequences:
        """As many texts as there are views, drawn by them, with repetition."""
        if not self.rows:
            raise UserError("buffer", "empty", "at least one text")
        places = (uniform(views.cpu(), _DECISIONS + 1) * len(self.rows)).long().tolist()
        chosen = [self.rows[place] for place in places]
        made = Sequences.pad(
            [row["prompt"].tolist() for row in chosen], [row["answer"].tolist() for row in chosen], pad=0
        )
        return Sequences.of({name: value.to(views.device) for name, value in made.columns().items()})

    def state_dict(self) -> dict[str, Any]:
        """All texts."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.rows = [dict(row) for row in state["rows"]][-self.capacity :]


def without_answers(given: Sequences) -> Sequences:
    """The prompts alone."""
    columns = {name: getattr(given, name) for name in COLUMNS}
    return Sequences(**{**columns, "answer": given.answer[:, :0], "answer_mask": given.answer_mask[:, :0]})
