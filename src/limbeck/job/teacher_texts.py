"""``--text teacher``: the teacher's answers to the training prompts, written once and learnt in place of the data's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.job.language import Language, columns
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.language import Generator, Sequences, ServedDecoding, TeacherText, write_texts
from limbeck.models.chat_input import Encoded
from limbeck.signals import move
from limbeck.sources import Server, Source

#: In the folder of a run; an interrupted run goes on with what is there.
FILE = "texts.jsonl"


def write_teacher_texts(plan: Plan, out: Path, live: Source, progress: Progress) -> None:
    """Let the teacher answer, or read what it answered before, and put that in the place of the data's answers.

    Validation and test samples stay as they are, and so does what the student without a teacher learns.

    Args:
        live: what answers in training; of a teacher behind a server it tells which one it is.
    """
    language = plan.language
    if language is None or not isinstance(language.writer(), TeacherText):
        return
    path = out / FILE
    try:
        language.written = _written(plan, language, path, live, progress)
    except UserError as error:
        if error.key != "file" or not plan.settings.overwrite:
            raise
        # The run that is being replaced had another teacher, other data or another way of writing.
        path.unlink()
        language.written = _written(plan, language, path, live, progress)


def _generator(plan: Plan, language: Language, live: Source) -> tuple[Generator, nn.Module | None]:
    """What writes, and the network that it writes with, where that is here."""
    if plan.address is None:
        return language.decoding, plan.teacher.module
    revision = fingerprint_text(live.known) if isinstance(live, Server) else ""
    return plan.address.writer(plan.teacher.tokenizer, language.decoding, revision), None


def _written(plan: Plan, language: Language, path: Path, live: Source, progress: Progress) -> Split:
    writer, (generator, module) = language.writer(), _generator(plan, language, live)
    split = language.splits.train
    samples: Any = split.input
    # Samples of one content share an id, and an answer.
    rows = {number: row for row, number in enumerate(split.id.tolist())}
    given = Sequences.of(columns([samples[row] for row in rows.values()], pad=language.pad, prompts=True))
    device = torch.device("cpu") if module is None else next(module.parameters()).device
    with progress.bar("teacher's texts", len(rows)) as advance:
        stored = write_texts(
            generator, module, Sequences.of(move(given.columns(), device)), torch.tensor(list(rows)), file=path,
            seed=None if getattr(writer, "greedy", False) else plan.settings.seed, batch_size=plan.batch_size,
            progress=advance,
        )  # fmt: skip
    answers: Any = stored.written.answer, stored.written.answer_mask
    if isinstance(generator, ServedDecoding):
        unread = int((stored.written.lengths == 0).sum())
        generator.questions.check(unread, len(rows))
        language.unread["prompts"] = unread, len(rows)
    made, ids = [], []
    for sample, number in zip(samples, split.id.tolist(), strict=True):
        row = stored.rows[number]
        answer = answers[0][row][answers[1][row]].cpu()
        # A prompt that the server reads in other tokens is left out.
        if not len(answer):
            continue
        prompt = sample.ids[: max(1, sample.start)]
        learnt = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), torch.ones(len(answer), dtype=torch.bool)])
        made.append(Encoded(torch.cat([prompt, answer]), learnt, 0, sample.teacher, sample.teacher_prompt))
        ids.append(number)
    return Split(made, None, torch.tensor(ids))
