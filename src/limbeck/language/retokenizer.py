"""A student's text for a teacher of another tokenizer: read out, tokenized anew, and aligned span by span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.language.alignment import AlignmentReport, Cutter, match_spans, readable
from limbeck.language.sequences import Sequences
from limbeck.signals import Batch


@dataclass(frozen=True)
class Retokenized:
    """A text for the teacher, and which tokens of both sides belong together.

    Attributes:
        teacher: the text in the teacher's tokens.
        student_span: ``[B, A]``, number of the span of every answer token of the student, -1 for none.
        teacher_span: ``[B, A of the teacher]``, the same of its own.
        report: how well it went.
    """

    teacher: Sequences
    student_span: Tensor
    teacher_span: Tensor
    report: AlignmentReport

    def entries(self) -> dict[str, Any]:
        """What a batch needs for aligned objectives: ``teacher_input``, a batch of its own for the teacher's source,
        and ``spans``."""
        return {
            "teacher_input": self.teacher.batch(),
            "spans": {"student": self.student_span, "teacher": self.teacher_span},
        }


@dataclass
class _Row:
    """One text while it is tokenized anew. Student tokens are counted over prompt and answer."""

    border: int
    teacher: list[int] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    student_span: dict[int, int] = field(default_factory=dict)
    teacher_span: dict[int, int] = field(default_factory=dict)
    spans: int = 0
    exact: bool = True

    def add(self, numbers: list[int], in_answer: list[bool]) -> range:
        first = len(self.teacher)
        self.teacher += numbers
        self.answer += in_answer
        return range(first, len(self.teacher))


class Retokenizer:
    """Makes a text of a student's tokens readable for a teacher of another tokenizer.

    The tokens that the student has (the data's, or its own samples) are never changed: their bytes make the text, which
    the teacher's tokenizer cuts anew. Prompt and answer are cut as one text, so that a teacher's token may lie across
    their border; it then counts as prompt, and the span around it is not compared. Only spans whose tokens all count
    (``learnt``) are compared.

    A special token stands for the teacher's special token of the same text, an end-of-text token for the end of text, a
    begin-of-text token at the very beginning likewise; each is a span of its own. Special tokens without a counterpart
    are left out of the teacher's text. For a chat give the teacher's own prompts, by its own template.

    Args:
        student, teacher: fast tokenizers of transformers.
        max_length: tokens of the teacher's text at most, prompt included; what is cut off is not compared.
        same: further special tokens of the student with the ids that they have for the teacher.

    Raises:
        UserError: a tokenizer that is not a fast one; lost in parts of words (WordPiece) spaces cannot be read from
            tokens, so such a student is refused.
    """

    def __init__(
        self, student: Any, teacher: Any, *, max_length: int | None = None, same: Mapping[int, int] | None = None
    ) -> None:
        self.student, self.teacher, self.max_length = Cutter(student), Cutter(teacher), max_length
        probe = "a b ab"
        if self.student.joined(self.student.cut(probe).ids).decode(errors="replace").strip() != probe:
            raise UserError(
                "student tokenizer", type(student).__name__, "one whose tokens spell the text (BPE or SentencePiece)",
                "WordPiece and tokenizers that change letters lose what a text was",
            )  # fmt: skip
        words = teacher.get_vocab()
        names = {number: student.convert_ids_to_tokens(number) for number in self.student.special}
        self.same = {number: words[name] for number, name in names.items() if words.get(name) in self.teacher.special}
        ends = student.eos_token_id, teacher.eos_token_id
        if None not in ends:
            self.same[ends[0]] = ends[1]
        self.same |= same or {}
        self.begins = student.bos_token_id, teacher.bos_token_id
        pad = teacher.pad_token_id if teacher.pad_token_id is not None else teacher.eos_token_id
        self.pad = pad if pad is not None else 0

    def __call__(self, text: Sequences, teacher_prompts: Sequences | None = None) -> Retokenized:
        """Tokenize the texts of a batch for the teacher.

        Args:
            text: in the student's tokens.
            teacher_prompts: prompts in the teacher's own tokens, instead of the student's read out.
        """
        rows = []
        for number in range(len(text)):
            prompt = text.prompt[number][text.prompt_mask[number]].tolist()
            answer = text.answer[number][text.answer_mask[number]].tolist()
            own = None
            if teacher_prompts is not None:
                own = teacher_prompts.prompt[number][teacher_prompts.prompt_mask[number]].tolist()
            rows.append(self._row(prompt, answer, own))
        return self._collected(text, rows)

    def transform(self, batch: Batch) -> dict[str, Any]:
        """A batch whose ``input`` has the columns of :class:`Sequences`, with ``teacher_input`` and ``spans``.

        Columns ``teacher_prompt`` and ``teacher_prompt_mask`` of the input are the teacher's own prompts.
        """
        return {**batch, **self(Sequences.of(batch["input"]), prompts_of(batch["input"])).entries()}

    def teacher_batch(self, batch: Batch) -> dict[str, Any]:
        """The batch as the teacher alone reads it: for writing a cache of its signals, which has them per token of its
        own."""
        return {**self.transform(batch)["teacher_input"], "id": batch["id"]}

    # One text.

    def _row(self, prompt: list[int], answer: list[int], own: list[int] | None) -> _Row:
        row, tokens = _Row(len(prompt)), prompt + answer
        if own is not None:
            row.add(own, [False] * len(own))
        elif not (tokens and self._counterpart(tokens[0], 0) in self.teacher.lead):
            row.add(self.teacher.lead, [False] * len(self.teacher.lead))
        for places in runs([self.student.marks(token) for token in tokens]):
            inside = [place for place in places if own is None or place >= row.border]
            if not inside:
                continue
            if self.student.marks(tokens[places[0]]):
                self._mark(row, places[0], tokens[places[0]])
            else:
                self._write(row, places, inside, tokens)
        return row

    def _counterpart(self, token: int, place: int) -> int | None:
        if place == 0 and token == self.begins[0] and self.begins[1] is not None:
            return int(self.begins[1])
        return self.same.get(token)

    def _mark(self, row: _Row, place: int, token: int) -> None:
        theirs = self._counterpart(token, place)
        if theirs is not None:
            (added,) = row.add([theirs], [place >= row.border])
            row.student_span[place] = row.teacher_span[added] = row.spans
            row.spans += 1

    def _write(self, row: _Row, places: list[int], inside: list[int], tokens: list[int]) -> None:
        lengths = [len(self.student.of(tokens[place])) for place in places]
        data = self.student.joined([tokens[place] for place in places])
        if self.student.adds_space and data[:1] == b" ":
            # The space that the tokenizer itself puts before a text.
            data = data[1:]
            first = next(number for number, length in enumerate(lengths) if length)
            lengths[first] -= 1
        skipped = sum(lengths[: len(places) - len(inside)])
        text, where, broken = readable(data[skipped:])
        ends, end = [], 0
        for length in lengths[len(places) - len(inside) :]:
            end += length
            ends.append(where[end])
        before = sum(length for place, length in zip(places, lengths, strict=True) if place < row.border)
        border = where[max(before - skipped, 0)]
        cut = self.teacher.cut(text)
        row.exact &= cut.exact
        added = row.add(cut.ids, [start >= border for start in [0, *cut.ends[:-1]][: len(cut.ids)]])
        ours, theirs = match_spans(ends, cut.ends)
        bad = {
            span
            for span, end, start in zip(theirs, cut.ends, [0, *cut.ends[:-1]], strict=False)
            if any(start < stop and first < end for first, stop in broken)
        }
        for place, span in zip(inside, ours, strict=True):
            row.student_span[place] = -1 if span in bad or span < 0 else span + row.spans
        for place, span in zip(added, theirs, strict=True):
            row.teacher_span[place] = -1 if span in bad or span < 0 else span + row.spans
        row.spans += max([*ours, *theirs], default=-1) + 1

    # The batch.

    def _collected(self, text: Sequences, rows: list[_Row]) -> Retokenized:
        prompts, answers, report = [], [], AlignmentReport()
        ours = torch.full(text.answer.shape, -1, dtype=torch.int64)
        lists: list[list[int]] = []
        counted = text.counted.cpu()
        for number, row in enumerate(rows):
            limit = len(row.teacher) if self.max_length is None else self.max_length
            border = row.answer.index(True) if True in row.answer else len(row.teacher)
            if min(border, limit) == 0:
                raise UserError("prompt", "a text without a prompt", "at least one token before every answer")
            prompts.append(row.teacher[:border][:limit])
            answers.append(row.teacher[border:limit])
            student = [row.student_span.get(place, -1) for place in range(row.border + int(text.lengths[number]))]
            student_counts = [False] * row.border + counted[number, : len(student) - row.border].tolist()
            teacher = [row.teacher_span.get(place, -1) for place in range(len(row.teacher))]
            teacher_counts = [border <= place < limit for place in range(len(teacher))]
            order = compared(student, student_counts, teacher, teacher_counts)
            renamed = [order.get(span, -1) for span in student]
            theirs = [order.get(span, -1) for span in teacher]
            ours[number, : len(renamed) - row.border] = torch.tensor(renamed[row.border :], dtype=torch.int64)
            lists.append(theirs[border:limit])
            report += self._report(text.answer[number].tolist(), row, renamed, theirs, limit, student_counts)
        made = Sequences.pad(prompts, answers, pad=self.pad)
        spans = torch.full(made.answer.shape, -1, dtype=torch.int64)
        for number, numbers in enumerate(lists):
            spans[number, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        device = text.answer.device
        moved = Sequences.of({name: value.to(device) for name, value in made.columns().items()})
        return Retokenized(moved, ours.to(device), spans.to(device), report)

    def _report(
        self, answer: list[int], row: _Row, ours: list[int], theirs: list[int], limit: int, counts: list[bool]
    ) -> AlignmentReport:
        sizes = [len(self.student.of(token)) for token in answer[: len(ours) - row.border]]
        counted = [size if counts[row.border + place] else 0 for place, size in enumerate(sizes)]
        spans = max(ours, default=-1) + 1
        alone = sum(ours.count(span) == theirs.count(span) == 1 for span in range(spans))
        left = sum(size for place, size in enumerate(counted) if ours[row.border + place] < 0)
        inside = sum(span >= 0 for span in ours), sum(span >= 0 for span in theirs)
        cut = int(len(row.teacher) > limit)
        return AlignmentReport(spans, alone, *inside, sum(counted), left, cut, int(not row.exact), 1)


def compared(
    student: list[int], student_counts: list[bool], teacher: list[int], teacher_counts: list[bool]
) -> dict[int, int]:
    """New numbers, in their order, of the spans that have tokens on both sides, all of which count."""
    seen = set(student) & set(teacher) - {-1}
    for spans, counts in ((student, student_counts), (teacher, teacher_counts)):
        seen -= {span for span, counted in zip(spans, counts, strict=True) if not counted}
    return {span: number for number, span in enumerate(sorted(seen))}


def prompts_of(given: Mapping[str, Tensor]) -> Sequences | None:
    """The teacher's own prompts among the columns of an input."""
    if "teacher_prompt" not in given:
        return None
    prompt, mask = given["teacher_prompt"], given["teacher_prompt_mask"]
    return Sequences(prompt, mask, prompt[:, :0], mask[:, :0])


def runs(marks: list[bool]) -> Iterator[list[int]]:
    """Places of tokens, in pieces: those that mark alone, others as long as they follow each other."""
    run: list[int] = []
    for place, marked in enumerate(marks):
        if marked:
            if run:
                yield run
            run = []
            yield [place]
        else:
            run.append(place)
    if run:
        yield run
