"""``--text teacher``: the teacher's answers to the training prompts, written once and learnt in place of the data's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.job.language import Language, columns
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.language import Sequences, TeacherText, write_texts
from limbeck.models.chat_input import Encoded
from limbeck.signals import move

#: In the folder of a run; an interrupted run goes on with what is there.
FILE = "texts.jsonl"


def write_teacher_texts(plan: Plan, out: Path, progress: Progress) -> None:
    """Let the teacher answer, or read what it answered before, and put that in the place of the data's answers.

    Validation and test samples stay as they are, and so does what the student without a teacher learns.
    """
    language = plan.language
    if language is None or not isinstance(language.writer(), TeacherText):
        return
    path = out / FILE
    try:
        language.written = _written(plan, language, path, progress)
    except UserError as error:
        if error.key != "file" or not plan.settings.overwrite:
            raise
        # The run that is being replaced had another teacher, other data or another way of writing.
        path.unlink()
        language.written = _written(plan, language, path, progress)


def _written(plan: Plan, language: Language, path: Path, progress: Progress) -> Split:
    writer, module = language.writer(), plan.teacher.module
    split = language.splits.train
    samples: Any = split.input
    # Samples of one content share an id, and an answer.
    rows = {number: row for row, number in enumerate(split.id.tolist())}
    given = Sequences.of(columns([samples[row] for row in rows.values()], pad=language.pad, prompts=True))
    device = next(module.parameters()).device
    with progress.bar("teacher's texts", len(rows)) as advance:
        stored = write_texts(
            language.decoding, module, Sequences.of(move(given.columns(), device)), torch.tensor(list(rows)), file=path,
            seed=None if getattr(writer, "greedy", False) else plan.settings.seed, batch_size=plan.batch_size,
            progress=advance,
        )  # fmt: skip
    answers: Any = stored.written.answer, stored.written.answer_mask
    made = []
    for sample, number in zip(samples, split.id.tolist(), strict=True):
        row = stored.rows[number]
        answer = answers[0][row][answers[1][row]].cpu()
        prompt = sample.ids[: max(1, sample.start)]
        learnt = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), torch.ones(len(answer), dtype=torch.bool)])
        made.append(Encoded(torch.cat([prompt, answer]), learnt, 0, sample.teacher, sample.teacher_prompt))
    return Split(made, None, split.id)
