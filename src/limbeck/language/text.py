"""Whose text a student learns on, written as text: ``data``, ``student``, ``mix(student=linear(0, 1))``, and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limbeck.errors import UserError
from limbeck.expressions import read_expression
from limbeck.language.generation import Decoding
from limbeck.language.revision import Reviser
from limbeck.language.writers import DataText, Mixed, OnPolicy, Replayed, Revised, TeacherText, Writer
from limbeck.schedules import Cosine, Linear, Schedule

FORMS = (
    "data", "teacher", "teacher(greedy=True)", "student", "mix(student=0.5)", "mix(student=linear(0, 1))",
    "replay(capacity=1000, share=1.0)", "corrected(rounds=1)", "mix(student=0.5, by=corrected(rounds=2))",
    "replay(by=corrected)",
)  # fmt: skip
_SHOWN = ", ".join(FORMS)


def parse_text(text: str, decoding: Decoding) -> Writer:
    """The writer that ``text`` stands for; see :data:`FORMS`.

    ``data`` is the data's own text, ``teacher`` answers that the teacher wrote before, ``student`` the student's
    samples to the data's prompts, ``mix`` draws for every step which of the two it is, ``replay`` also takes old
    samples from a buffer, and in ``corrected`` texts the teacher replaces the worst token and the student writes on.
    ``by`` is who writes: ``student`` or ``corrected``.

    Args:
        decoding: how the student writes.

    Raises:
        UserError: another name, or an option that a writer does not have.
    """

    def student() -> Writer:
        return OnPolicy(decoding)

    def corrected(rounds: int = 1, rule: str = "divergence", first: int | None = None) -> Writer:
        return Revised(OnPolicy(decoding), Reviser(decoding, rounds, rule, first))

    def mix(student: float | Schedule = 0.5, by: Writer | None = None) -> Writer:
        return Mixed(_writer(by, OnPolicy(decoding)), student)

    def replay(capacity: int = 1000, share: float | Schedule = 1.0, by: Writer | None = None) -> Writer:
        return Replayed(_writer(by, OnPolicy(decoding)), capacity, share)

    names: dict[str, Callable[..., Any]] = {
        "data": DataText, "teacher": TeacherText, "student": student, "mix": mix, "replay": replay,
        "corrected": corrected,
        "linear": Linear, "cosine_schedule": Cosine,
    }  # fmt: skip
    built = read_expression(text, names, key="text", form=_SHOWN, sums=False)
    if not isinstance(built, Writer):
        raise UserError("text", text, _SHOWN)
    return built


def writes(writer: Writer) -> bool:
    """Whether a student writes: its texts are new, so that no cache knows them."""
    return not isinstance(writer, DataText)


def _writer(given: Writer | None, usual: Writer) -> Writer:
    if given is None:
        return usual
    if not isinstance(given, Writer) or isinstance(given, DataText):
        raise UserError("text by", type(given).__name__, "student or corrected(...)")
    return given
