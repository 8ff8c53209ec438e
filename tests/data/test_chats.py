from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.chats import Chat
from limbeck.data.references import DataSet, load_data
from limbeck.errors import UserError


def load(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> DataSet:
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return load_data(f"parquet:{path}", **options)


def turns(number: int, user: str = "user", assistant: str = "assistant") -> list[dict[str, str]]:
    return [{"role": user, "content": f"what {number}"}, {"role": assistant, "content": f"that {number}"}]


def test_messages_are_recognised_without_a_task(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": turns(number)} for number in range(20)])
    assert (data.task, data.modality) == ("causal-lm", "text")
    chats = [*data.splits.train.input, *data.splits.validation.input, *data.splits.test.input]
    assert len({chat.turns for chat in chats}) == 20
    assert chats[0].messages[1]["content"].startswith("that")
    assert not set(data.splits.train.id.tolist()) & set(data.splits.test.id.tolist())


def test_the_speakers_of_sharegpt(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]} for n in range(9)
    ]
    chat = load(tmp_path, rows).splits.train.input[0]
    assert [role for role, _ in chat.turns] == ["user", "assistant"]


def test_prompt_and_completion_as_texts_and_as_messages(tmp_path: Path) -> None:
    rows = [{"prompt": f"what {n}", "completion": None if n == 3 else f"that {n}"} for n in range(12)]
    data = load(tmp_path, rows, task="causal-lm")
    chats = [*data.splits.train.input, *data.splits.validation.input, *data.splits.test.input]
    assert sum(chat.answers for chat in chats) == 11
    assert all(chat.turns[0][0] == "user" for chat in chats)
    pairs = [{"prompt": turns(n)[:1], "completion": turns(n)[1:]} for n in range(12)]
    data = load(tmp_path, pairs, task="causal-lm")
    assert [role for role, _ in data.splits.train.input[0].turns] == ["user", "assistant"]


def test_rows_without_text_are_left_out_with_a_note(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": turns(number)} for number in range(9)] + [{"messages": []}, {"messages": None}])
    assert "2 train rows without text left out" in data.notes


def test_a_column_names_the_teacher_of_texts_and_of_chats(tmp_path: Path) -> None:
    rows = [{"text": f"some words {n % 6}", "by": "ab"[n // 6]} for n in range(12)]
    data = load(tmp_path, rows, task="causal-lm", columns={"teacher": "by"})
    every = [part for split in (data.splits.train, data.splits.validation, data.splits.test) for part in split.input]
    assert {chat.teacher for chat in every} == {"a", "b"}
    assert all(chat.is_plain for chat in every)
    # One text of two teachers is two samples.
    ids = [number for s in (data.splits.train, data.splits.validation, data.splits.test) for number in s.id.tolist()]
    assert len(set(ids)) == 12
    rows = [{"messages": turns(n), "by": "x"} for n in range(9)]
    assert load(tmp_path, rows, columns={"teacher": "by"}).splits.train.input[0].teacher == "x"


def test_plain_texts_stay_texts(tmp_path: Path) -> None:
    data = load(tmp_path, [{"text": f"some words {n}"} for n in range(9)], task="causal-lm")
    assert all(isinstance(text, str) for text in data.splits.train.input)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"messages": "text"}], {"columns": {"messages": "messages"}}, "messages: given string; allowed: a list of"),
        ([{"messages": turns(0)}], {"columns": {"messages": "talk"}}, "columns.messages: given talk"),
        ([{"prompt": "a", "completion": "b"}], {"columns": {"promt": "prompt"}}, "columns: given promt"),
        ([{"messages": [{"role": "user", "content": None}]}], {}, "only text can be read"),
        ([{"messages": turns(0)}] * 3, {"columns": {"teacher": "by"}}, "columns.teacher: given by"),
    ],
)
def test_refused(tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, rows, task="causal-lm", **options)


def test_letters_and_words_of_a_chat() -> None:
    chat = Chat((("user", "ab"), ("assistant", "cde")))
    assert (len(chat), str(chat), chat.is_plain, chat.answers) == (5, "ab\ncde", False, True)
    assert not Chat((("user", "ab"),)).answers
