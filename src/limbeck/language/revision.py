"""Correcting what a student wrote: find its worst token, put the teacher's in its place, let it write on from there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.generation import Generator
from limbeck.language.sequences import Sequences, answer_logits, chosen_place
from limbeck.losses import forward_kl
from limbeck.nn.mode import evaluating
from limbeck.signals import HeadLogits
from limbeck.sources import Source

RULES = ("divergence", "random")
# The numbers of a view below this choose tokens; those above, places.
_PLACES = 1 << 20


@dataclass(frozen=True)
class Correction:
    """What one round of revision changed.

    Attributes:
        place: ``[B]``, the answer token that was replaced; -1 where teacher and student agreed everywhere.
        old, new: ``[B]``, the tokens; -1 there.
        divergence: ``[B]``, KL(teacher || student) at the place, nats; 0 there.
        length: ``[B]``, tokens of the answer before.
    """

    place: Tensor
    old: Tensor
    new: Tensor
    divergence: Tensor
    length: Tensor

    @property
    def changed(self) -> Tensor:
        """``[B]``: rows with a correction."""
        return self.place >= 0

    def summary(self) -> dict[str, Tensor]:
        """``changed``, the share of rows; ``relative_place``, where in the answer, 0 to 1; ``divergence`` there."""
        rows = self.changed
        count = rows.sum().clamp_min(1)
        relative = torch.where(rows, self.place / self.length.clamp_min(1), 0.0)
        return {
            "changed": rows.float().mean(),
            "relative_place": relative.sum() / count,
            "divergence": self.divergence.sum() / count,
        }


def token_divergence(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) of every position ``[B, A]`` from logits ``[B, A, V]``; 0 where ``mask`` is False."""
    return forward_kl(student_logits, teacher_logits, mask=mask, reduction="none")


def locate(
    student_logits: Tensor,
    teacher_logits: Tensor,
    written: Sequences,
    *,
    rule: str = "divergence",
    first: int | None = None,
    views: Tensor | None = None,
) -> Correction:
    """Which token of every answer to replace, and by what.

    Candidates are the places where the teacher's most probable token is not the one that was written. Among them the
    one with the largest divergence is taken; the first of equals.

    Args:
        student_logits, teacher_logits: ``[B, A, V]`` of :func:`~limbeck.language.answer_logits`.
        rule: ``divergence``, or ``random`` for a candidate drawn by ``views`` (a control).
        first: only the first so many candidates. Repetitive samples end in places of large, meaningless divergence.
    """
    if rule not in RULES:
        raise UserError("rule", rule, RULES)
    if first is not None and first < 1:
        raise UserError("first", first, "1 or more, or None for all")
    mask = written.counted
    wanted = teacher_logits.argmax(dim=-1)
    candidates = mask & (wanted != written.answer)
    if first is not None:
        candidates = candidates & (candidates.cumsum(1) <= first)
    divergence = token_divergence(student_logits, teacher_logits, mask)
    if rule == "divergence":
        place = torch.where(candidates, divergence, -torch.inf).argmax(1)
    elif views is None:
        raise UserError("views", "none", "a view per row for a random place")
    else:
        place = chosen_place(candidates, views, _PLACES)
    found = candidates.any(1)

    def at(values: Tensor) -> Tensor:
        return values.gather(1, place[:, None]).squeeze(1)

    return Correction(
        torch.where(found, place, -1),
        torch.where(found, at(written.answer), -1),
        torch.where(found, at(wanted), -1),
        torch.where(found, at(divergence), 0.0),
        written.lengths,
    )


def corrected_prefix(written: Sequences, correction: Correction, pad: int) -> Sequences:
    """Every answer up to and with its correction; an answer without one stays whole."""
    columns = torch.arange(written.answer.shape[1], device=written.answer.device)
    place, changed = correction.place[:, None], correction.changed[:, None]
    kept = torch.where(changed, columns <= place, written.answer_mask)
    answer = torch.where(changed & (columns == place), correction.new[:, None], written.answer)
    return written.with_answers(torch.where(kept, answer, pad), kept)


@dataclass
class Reviser:
    """Sequence correction and re-generation (SCRG).

    Per round: one teacher and one student pass over the text, :func:`locate`, and the student writes on behind the
    correction with the row's own view. Logits of the text before say nothing about the text after: compute them anew.

    Attributes:
        decoding: how the student writes.
        rounds: corrections one after the other.
        rule, first: see :func:`locate`.
        corrections: of the latest call, one per round.
    """

    decoding: Generator
    rounds: int = 1
    rule: str = "divergence"
    first: int | None = None
    corrections: list[Correction] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, student: nn.Module, teacher: Source, written: Sequences, views: Tensor) -> Sequences:
        """The revised texts; prompts are as they were."""
        self.corrections = []
        for number in range(self.rounds):
            batch = written.batch()
            with evaluating(student):
                ours = answer_logits(student, batch)["logits"]
            theirs = _logits(teacher(batch, ("logits",))["logits"])
            found = locate(ours, theirs, written, rule=self.rule, first=self.first, views=views + number)
            self.corrections.append(found)
            written = self.decoding(student, corrected_prefix(written, found, self.decoding.pad), views)
        return written


def _logits(value: object) -> Tensor:
    if isinstance(value, HeadLogits):
        return value.to_dense()
    if not isinstance(value, Tensor):
        raise UserError("teacher", "sparse logits", "a live teacher", "a revised text is new, no cache holds it")
    return value
