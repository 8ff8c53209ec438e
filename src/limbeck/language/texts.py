"""Texts that a model writes once and a student is taught on later: sequence-level distillation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_of
from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language.generation import Generator
from limbeck.language.sequences import Sequences
from limbeck.language.writers import StoredText, without_answers

_FORMAT = "limbeck-texts-1"


def write_texts(
    generator: Generator,
    model: nn.Module | None,
    given: Sequences,
    ids: Tensor,
    *,
    file: str | Path | None = None,
    seed: int | None = 0,
    draw: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> StoredText:
    """Answers to all prompts of ``given``, as a writer that gives them by sample.

    Source: Kim and Rush, Sequence-Level Knowledge Distillation, EMNLP 2016

    Args:
        generator: a :class:`~limbeck.language.Decoding` of the teacher ``model``, or a
            :class:`~limbeck.language.ServedDecoding` with None.
        given: prompts; answers in them are left out of account.
        ids: int64 ``[N]`` of the samples.
        file: keeps the texts as lines of JSON, after every batch; an interrupted run goes on where it stopped, and
            texts of another teacher, setting or prompt are refused.
        seed: of the samples; None for the most probable tokens. draw: 0, 1, ... for several samples of a prompt.
        progress: called with the number of texts there are.
    """
    if len(given) != len(ids) or len(ids.unique()) != len(ids):
        raise UserError("ids", f"{len(ids)} ({len(ids.unique())} different)", f"one per prompt, {len(given)}")
    prompts = without_answers(given)
    made: dict[int, list[int]] = {}
    store = None
    if file is not None:
        about = {"generator": generator, "seed": seed, "draw": draw, **({} if model is None else {"model": model})}
        store = _Lines(Path(file), fingerprint_of(**about, prompts=[prompts.prompt, prompts.prompt_mask, ids]))
        made = store.read()
    missing = torch.tensor([row for row, number in enumerate(ids.tolist()) if number not in made], dtype=torch.int64)
    for rows in missing.split(batch_size):
        if not len(rows):
            break
        views = None if seed is None else view_seeds(seed, draw, ids[rows])
        text = generator(model, prompts.select(rows), views)  # type: ignore[arg-type]
        fresh = {
            int(ids[row]): answer[mask].tolist()
            for row, answer, mask in zip(rows.tolist(), text.answer, text.answer_mask, strict=True)
        }
        if store is not None:
            # What a server left out is asked again when a run goes on.
            store.add({number: answer for number, answer in fresh.items() if answer})
        made |= fresh
        if progress is not None:
            progress(len(made))
    asked = [row[mask].tolist() for row, mask in zip(prompts.prompt, prompts.prompt_mask, strict=True)]
    return StoredText(Sequences.pad(asked, [made[number] for number in ids.tolist()], pad=generator.pad), ids)


class _Lines:
    """One line of what the texts are of, and one per text; whole lines count, whatever stopped the writer."""

    def __init__(self, path: Path, fingerprint: dict[str, str]) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.head = {"format": _FORMAT, "fingerprint": fingerprint}

    def read(self) -> dict[int, list[int]]:
        """The texts there are; makes the file if there is none."""
        if not self.path.exists() or not self.path.stat().st_size:
            self._append([self.head])
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
            found = {int(line["id"]): [int(one) for one in line["answer"]] for line in lines}
        except (ValueError, KeyError, TypeError):
            raise UserError("file", str(self.path), "lines of JSON as write_texts makes them") from None
        if head != self.head:
            then = head.get("fingerprint", {}) if isinstance(head, dict) else {}
            names = sorted({*self.fingerprint, *then})
            parts = [name for name in names if then.get(name) != self.fingerprint.get(name)]
            raise UserError("file", f"{self.path}, of another {' and '.join(parts)}", "the same, or another file")
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return found

    def add(self, texts: dict[int, list[int]]) -> None:
        """Put some texts on disk."""
        self._append([{"id": number, "answer": answer} for number, answer in texts.items()])

    def _append(self, lines: Sequence[Mapping[str, object]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as out:
            out.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            out.flush()
            os.fsync(out.fileno())
