"""What correction does to a text, before anybody learns from it: samples of one student, raw and revised.

Nothing is trained. The fine-tuned student writes samples to the test prompts; an arm is what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from limbeck import testbeds
from limbeck.data.views import view_seeds
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.language import Reviser, Sequences, answer_logits, without_answers
from limbeck.measure.text import distinct_n, rouge_l
from limbeck.sources import Live

from .docstrings import Docstrings


@dataclass(frozen=True)
class Treatment:
    """``writer``: whose samples, ``student`` or ``teacher``; the others are of :class:`~limbeck.language.Reviser`."""

    writer: str = "student"
    rounds: int = 0
    rule: str = "divergence"
    first: int | None = None


ARMS = {
    "raw": Arm(Treatment(), "the student's samples as they are", "none"),
    "teacher": Arm(Treatment("teacher"), "the teacher's samples", "rival"),
    "revised": Arm(Treatment(rounds=1), "one correction at the worst place, written on by the student"),
    "revised-3": Arm(Treatment(rounds=3), "three corrections", "ablation"),
    "revised-5": Arm(Treatment(rounds=5), "five corrections", "ablation"),
    "first-3": Arm(Treatment(rounds=1, first=3), "the worst of the first three places that differ", "ablation"),
    "random-place": Arm(Treatment(rounds=1, rule="random"), "a random place that differs", "control"),
}
PAPER = "abstract"
CLAIMS = [
    Claim("Correction makes samples likelier to the teacher", "revised", "raw", "teacher_nll", 0.0, "lower", PAPER),
    Claim("Correction brings samples closer to the true answers", "revised", "raw", "rouge_l", 0.0, "higher", PAPER),
    Claim("Correction makes samples more varied", "revised", "raw", "distinct_2", 0.0, "higher", PAPER),
    Claim("The worst place beats a random one", "revised", "random-place", "rouge_l", 0.0, "higher", "control"),
    Claim(
        "The worst place makes samples likelier than a random one", "revised", "random-place", "teacher_nll", 0.0,
        "lower", "control",
    ),
    Claim("Three corrections beat one", "revised-3", "revised", "rouge_l", 0.0, "higher", "table 4c, by reviews"),
    Claim("Five corrections beat three", "revised-5", "revised-3", "rouge_l", 0.0, "higher", "table 4c, by reviews"),
]  # fmt: skip


class Texts(Experiment):
    """See the module."""

    name = "texts"
    title = "What one correction does to a sample"
    testbed = "docstrings:plain"
    metric = "rouge_l"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}

    def prepare(self) -> dict[str, Any]:
        """Teacher, fine-tuned student and the gate."""
        return {"gate": self.bed.gate().as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Write, correct, measure."""
        way: Treatment = self.arms[arm].setting
        test, student, teacher = self.bed.splits().test, self.bed.student(), self.bed.teacher()
        decoding, views = self.bed.decoding(), view_seeds(seed, 0, test.id)
        written = decoding(
            teacher if way.writer == "teacher" else student, without_answers(Sequences.of(test.input)), views
        )
        metrics: dict[str, float] = {}
        notes: dict[str, Any] = {}
        if way.rounds:
            before, reviser = written, Reviser(decoding, rounds=way.rounds, rule=way.rule, first=way.first)
            written = reviser(student, Live(teacher, forward=answer_logits), written, views)
            metrics |= {name: float(value) for name, value in reviser.corrections[0].summary().items()}
            if seed == 0:
                notes["trace"] = trace(self.bed, before, written, reviser)
        texts = self.bed.text(written)
        metrics["rouge_l"] = sum(rouge_l(texts, self.bed.references(test))) / len(texts)
        metrics["distinct_2"] = distinct_n(texts)
        metrics["teacher_nll"], divergence, mask = Docstrings.read(student, teacher, written)
        metrics["kl"] = float(divergence[mask].mean())
        metrics["words"] = sum(len(text.split()) for text in texts) / len(texts)
        return Outcome(metrics, notes=notes)


def trace(bed: Any, before: Sequences, after: Sequences, reviser: Reviser, count: int = 6) -> list[dict[str, str]]:
    """The first few texts with what was changed in them."""
    found, tokenizer = reviser.corrections[0], bed.tokenizer
    rows = torch.arange(min(count, len(before)))
    old, new = bed.text(before.select(rows)), bed.text(after.select(rows))
    shown = []
    for row in rows.tolist():
        place = int(found.place[row])
        words = [tokenizer.decode([int(ids[row])]) if place >= 0 else "" for ids in (found.old, found.new)]
        change = f"token {place}: {words[0]!r} becomes {words[1]!r}" if place >= 0 else "nothing to correct"
        shown.append({"sample": old[row], "change": change, "revised": new[row]})
    return shown
