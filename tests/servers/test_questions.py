from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.servers import Connection, Misread, Questions, ServerRefused


class Echoed(Connection):
    """A server that answers with what it was asked."""

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        return [body["text"] for body in bodies]


def ask(questions: Questions, texts: Sequence[str]) -> list[str | None]:
    """Texts with a ? cannot be asked, answers with a ! cannot be read."""

    def request(text: str) -> dict[str, Any]:
        if "?" in text:
            raise Misread(f"asked {text}")
        return {"text": text}

    def read(answer: str, text: str) -> str:
        assert answer == text
        if "!" in text:
            raise Misread(f"read {text}")
        return answer.upper()

    return questions("/path", texts, request, read)


def questions(share: float) -> Questions:
    return Questions(Echoed("http://here"), share)


def test_what_is_left_out_is_counted_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    asker = questions(0.5)
    with caplog.at_level(logging.WARNING, "limbeck.servers"):
        assert ask(asker, ["a", "b?", "c", "d!"]) == ["A", None, "C", None]
        assert ask(asker, ["e", "f!"]) == ["E", None]
    assert (asker.asked, asker.unread) == (6, 3)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["asked b?"]


def test_few_texts_are_no_reason_to_stop_and_many_are() -> None:
    asker = questions(0.2)
    assert ask(asker, ["?"] * 10) == [None] * 10
    assert ask(asker, ["a"] * 9)[-1] == "A"
    with pytest.raises(ServerRefused) as caught:
        ask(asker, ["b!"] * 6)
    message = str(caught.value)
    assert "http://here reads 16 of 25 texts in other tokens than the tokenizer, more than 20%" in message
    assert all(reason in message for reason in ("another tokenizer", "special tokens", "--max-length", "asked ?"))


def test_without_a_share_the_first_is_an_error() -> None:
    with pytest.raises(Misread, match="read b!"):
        ask(questions(0), ["a", "b!"])
    questions(0.2).check(1, 5)
    with pytest.raises(ServerRefused, match="reads 2 of 5 texts"):
        questions(0.2).check(2, 5)
    with pytest.raises(UserError, match="unread: given 1.5; allowed: a share of the texts, 0 to 1"):
        questions(1.5)
