"""Conversations and prompts with completions: samples of language models that a chat template turns into text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from limbeck.data.split import Split
from limbeck.errors import UserError

#: Columns that hold whole conversations, as lists of ``{role, content}`` (or ``{from, value}``).
MESSAGES = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction")
COMPLETIONS = ("completion", "response")
#: What ``columns`` may name for language models, besides ``text``.
ROLES = ("messages", "prompt", "completion", "teacher")
_OTHERS = ("text", "text_pair", "label", "image")
#: Who speaks in the files of ShareGPT and its kin.
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
PLAIN = ""


@dataclass(frozen=True)
class Chat:
    """One sample of language.

    Attributes:
        turns: ``(role, content)`` in their order; a plain text is one turn of the role :data:`PLAIN`.
        teacher: name of the teacher that the sample goes to, where samples are routed.
    """

    turns: tuple[tuple[str, str], ...]
    teacher: str = ""

    @classmethod
    def plain(cls, text: str, teacher: str = "") -> Chat:
        """A text without turns."""
        return cls(((PLAIN, text),), teacher)

    @property
    def is_plain(self) -> bool:
        """Whether this is a text without turns."""
        return all(role == PLAIN for role, _ in self.turns)

    @property
    def answers(self) -> bool:
        """Whether there is something to learn: a turn of the assistant, or a plain text."""
        return any(role in (PLAIN, "assistant") for role, _ in self.turns)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates read them."""
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the sample that it is, for its id."""
        return tuple(part for turn in self.turns for part in turn)

    def __len__(self) -> int:
        """Letters."""
        return sum(len(content) for _, content in self.turns)

    def __str__(self) -> str:
        return "\n".join(content for _, content in self.turns)


def find_chats(table: pa.Table, asked: Mapping[str, str]) -> dict[str, str]:
    """Which columns hold conversations, or prompts and completions: part -> column; empty where there are none.

    Raises:
        UserError: ``asked`` names a column that is not there, or one that holds no list of messages.
    """
    for role in asked:
        if role not in (*ROLES, *_OTHERS):
            raise UserError("columns", role, (*_OTHERS, *ROLES))
    for role in ROLES:
        if role in asked and asked[role] not in table.column_names:
            raise UserError(f"columns.{role}", asked[role], table.column_names)
    if {"messages", "prompt"} <= set(asked):
        raise UserError("columns", "messages and prompt", "one of the two")
    found = {role: asked[role] for role in ROLES if role in asked}
    if "text" in asked and "messages" not in found and "prompt" not in found:
        return {}
    lowered = {name.lower(): name for name in table.column_names}
    if "prompt" not in found and "messages" not in found:
        named = next((lowered[name] for name in MESSAGES if name in lowered), None)
        if named is not None and _is_messages(table.schema.field(named).type):
            found["messages"] = named
        else:
            prompt = next((lowered[name] for name in PROMPTS if name in lowered), None)
            completion = next((lowered[name] for name in COMPLETIONS if name in lowered), None)
            # A completion decides: "prompt" alone may be any text.
            if prompt is not None and completion is not None:
                found |= {"prompt": prompt, "completion": found.get("completion", completion)}
    if "messages" in found and not _is_messages(table.schema.field(found["messages"]).type):
        kind = table.schema.field(found["messages"]).type
        raise UserError(f"columns.messages {found['messages']}", str(kind), "a list of {role, content}")
    return found if "messages" in found or "prompt" in found else {}


def read_chats(table: pa.Table, columns: Mapping[str, str], key: str) -> list[Chat]:
    """The samples of a table; rows without any text become chats without turns.

    Raises:
        UserError: a message without role or content, or with content that is no text.
    """
    teachers = table[columns["teacher"]].to_pylist() if "teacher" in columns else [""] * table.num_rows
    names = ["" if name is None else str(name) for name in teachers]
    if "messages" in columns:
        cells = table[columns["messages"]].to_pylist()
        return [Chat(_turns(cell, f"{key} row {row}"), names[row]) for row, cell in enumerate(cells)]
    prompts = table[columns["prompt"]].to_pylist()
    completions = table[columns["completion"]].to_pylist() if "completion" in columns else [None] * len(prompts)
    rows = enumerate(zip(prompts, completions, names, strict=True))
    return [
        Chat((*_side(prompt, "user", f"{key} row {row}"), *_side(answer, "assistant", f"{key} row {row}")), name)
        for row, (prompt, answer, name) in rows
    ]


def routed(texts: Sequence[str], table: pa.Table, column: str) -> list[Chat]:
    """Plain texts with the teacher that each goes to."""
    names = table[column].to_pylist()
    return [Chat.plain(text or "", "" if name is None else str(name)) for text, name in zip(texts, names, strict=True)]


def text_of(sample: Any) -> str:
    """A text, or the words of a conversation without its template."""
    return sample if isinstance(sample, str) else str(sample)


def prompts_of(split: Split) -> bool:
    """Whether the samples have turns, so that there is a prompt to answer."""
    return any(isinstance(sample, Chat) and not sample.is_plain for sample in split.input)


def _is_messages(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    if not pa.types.is_struct(inner):
        return False
    names = {inner.field(place).name for place in range(inner.num_fields)}
    return {"role", "content"} <= names or {"from", "value"} <= names


def _turns(cell: Any, where: str) -> tuple[tuple[str, str], ...]:
    return tuple(_messages(cell or (), where))


def _side(cell: Any, role: str, where: str) -> tuple[tuple[str, str], ...]:
    """A prompt or completion: a text, or a list of messages."""
    if isinstance(cell, list):
        return _turns(cell, where)
    return ((role, str(cell)),) if cell is not None and str(cell).strip() else ()


def _messages(cell: Sequence[Mapping[str, Any]], where: str) -> Iterator[tuple[str, str]]:
    for message in cell:
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            hint = "only text can be read: no tool calls, no pictures"
            raise UserError(where, json.dumps(message, default=str)[:200], "messages of {role, content}", hint)
        yield _SPEAKERS.get(role, role), content
