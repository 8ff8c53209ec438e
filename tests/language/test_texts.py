from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import UserError
from limbeck.language import Decoding, Sequences, ServedDecoding, Step, StoredText, write_texts
from limbeck.servers import ServerGone, TokenTexts
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts
from tests.servers.imitation import NAME, fail, serving, tokenizer

DECODING = Decoding(5, END, PAD)
IDS = torch.arange(6) * 3


def written(**options: Any) -> StoredText:
    return write_texts(DECODING, options.pop("model", network()), texts(), IDS, **{"batch_size": 2, **options})


def answers(stored: StoredText) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(stored.written.answer, stored.written.answer_mask, strict=True)]


def test_texts_are_the_teachers_and_are_found_by_sample() -> None:
    stored = written(seed=None)
    whole = DECODING(network(), texts().with_answers(texts().answer[:, :0], texts().answer_mask[:, :0]))
    assert answers(stored) == [row[mask].tolist() for row, mask in zip(whole.answer, whole.answer_mask, strict=True)]
    given = Step(network(1), None, texts().select(torch.tensor([4])), torch.tensor([0]), torch.tensor([12]))
    found = stored(given)
    assert found.answer[0].tolist() == answers(stored)[4]
    assert found.prompt.tolist() == given.given.trimmed().prompt.tolist()


def test_draws_and_seeds_give_other_samples_and_batches_do_not() -> None:
    first = answers(written())
    assert answers(written(batch_size=5)) == first
    assert answers(written(draw=1)) != first
    assert answers(written(seed=1)) != first


def test_an_interrupted_writer_goes_on(tmp_path: Path) -> None:
    file, seen = tmp_path / "new" / "texts.jsonl", []

    def stop(count: int) -> None:
        seen.append(count)
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(file=file, progress=stop)
    with file.open("ab") as out:
        out.write(b'{"id": 12, "answ')
    resumed = written(file=file, progress=seen.append)
    assert seen == [2, 4, 6]
    assert answers(resumed) == answers(written())
    assert answers(written(file=file, progress=seen.append)) == answers(resumed)
    assert len(seen) == 3, "nothing was left to write"
    assert len(file.read_text().splitlines()) == 7


def test_texts_of_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    written(file=file)
    with pytest.raises(UserError, match="of another model"):
        written(file=file, model=network(1))
    with pytest.raises(UserError, match="of another seed"):
        written(file=file, seed=3)
    with pytest.raises(UserError, match="of another seed"):
        written(file=file, seed=None)
    with pytest.raises(UserError, match="of another generator"):
        write_texts(Decoding(4, END, PAD), network(), texts(), IDS, file=file)
    with pytest.raises(UserError, match="of another prompts"):
        write_texts(DECODING, network(), texts(), IDS + 1, file=file)
    file.write_text("no json\n")
    with pytest.raises(UserError, match="lines of JSON"):
        written(file=file)
    with pytest.raises(UserError, match="ids: given 6 .5 different"):
        write_texts(DECODING, network(), texts(), torch.tensor([0, 0, 1, 2, 3, 4]))


def test_a_served_teacher_that_goes_away_loses_nothing(tmp_path: Path) -> None:
    table = TokenTexts(tokenizer())
    prompts = Sequences.pad([table.encode(one) for one in ("the capital", "the cat sat", "What is")], pad=0)
    ids, file = torch.arange(3), tmp_path / "texts.jsonl"
    with serving("sglang") as server:
        options: dict[str, Any] = {"length": 4, "concurrency": 1, "patience": 0.2}
        generator = ServedDecoding(server.url, NAME, tokenizer(), **options)
        whole = answers(write_texts(generator, None, prompts, ids))
        server.faults = [None, *[fail(503)] * 50]
        with pytest.raises(ServerGone):
            write_texts(generator, None, prompts, ids, file=file, batch_size=1)
        server.faults = []
        before = len(server.asked)
        assert answers(write_texts(generator, None, prompts, ids, file=file, batch_size=1)) == whole
        assert len(server.asked) - before == 2
