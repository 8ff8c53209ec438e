"""What the tokens of a tokenizer stand for, in bytes: the one measure by which two tokenizers can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from limbeck.errors import UserError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: How a token's text stands for bytes: letters for bytes (GPT-2), a mark for a space and ``<0x0A>`` for bytes
#: (SentencePiece), parts of words without their spaces (BERT), or itself.
KINDS = ("byte_level", "sentencepiece", "wordpiece", "plain")


def token_kind(tokenizer: Any) -> str:
    """One of :data:`KINDS`, read from the tokenizer's own decoder, pre-tokenizer and model."""
    content = pipeline(tokenizer)
    parts = [part["type"] for key in ("decoder", "pre_tokenizer") for part in _parts(content.get(key))]
    model = content.get("model") or {}
    if "ByteLevel" in parts:
        return "byte_level"
    if model.get("type") == "WordPiece" or "WordPiece" in parts:
        return "wordpiece"
    if "Metaspace" in parts or model.get("byte_fallback") or model.get("type") == "Unigram":
        return "sentencepiece"
    return "plain"


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of every token, by id; None where there is no token of that id.

    A special or added token stands for its own text. Parts of words (BERT) are given without ``##``, and do not know
    whether a space is before them.

    Raises:
        UserError: a tokenizer without a pipeline that could be read (one of transformers' slow ones).
    """
    kind, added = token_kind(tokenizer), added_tokens(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    table: list[bytes | None] = [None] * vocabulary_size(tokenizer)
    for token, number in vocabulary.items():
        table[number] = token.encode() if number in added else _bytes_of(token, kind)
    return table


def added_tokens(tokenizer: Any) -> dict[int, bool]:
    """Ids of tokens that are matched before the tokenizer's own rules, and whether they are special."""
    found = {int(entry["id"]): bool(entry.get("special")) for entry in pipeline(tokenizer).get("added_tokens") or ()}
    return found | dict.fromkeys(getattr(tokenizer, "all_special_ids", ()), True)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of tokens that mark and do not write: begin, end, padding, turns of a chat."""
    return frozenset(number for number, special in added_tokens(tokenizer).items() if special)


def vocabulary_size(tokenizer: Any) -> int:
    """Rows that a table needs for the tokenizer: its largest id and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def begins_word(tokenizer: Any) -> list[bool]:
    """By id: whether a token begins with white space or is special, so that the word before it is over."""
    special = special_ids(tokenizer)
    return [
        number in special or (token is not None and token[:1].isspace())
        for number, token in enumerate(token_bytes(tokenizer))
    ]


def pipeline(tokenizer: Any) -> dict[str, Any]:
    """The parts of a fast tokenizer as plain values: model, normalizer, pre_tokenizer, decoder, added_tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise UserError("tokenizer", type(tokenizer).__name__, "a fast tokenizer of transformers, or of tokenizers")
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    """A component of a pipeline, and those that it is made of."""
    if not isinstance(content, dict):
        return
    yield content
    for inner in content.get("decoders") or content.get("pretokenizers") or ():
        yield from _parts(inner)


def _bytes_of(token: str, kind: str) -> bytes:
    if kind == "byte_level":
        letters = byte_letters()
        # A letter outside the table is a token that was added without a record of it: its own text.
        return bytes(letters[letter] for letter in token) if set(token) <= letters.keys() else token.encode()
    if kind == "sentencepiece":
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return token.removeprefix("##").encode() if kind == "wordpiece" else token.encode()


@cache
def byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes: printable ones of Latin-1 stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
