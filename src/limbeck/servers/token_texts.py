"""Texts of tokens, and back: for servers that name tokens by their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from limbeck.errors import UserError
from limbeck.tokens import special_ids, token_bytes


class TokenTexts:
    """A tokenizer of transformers as a table of bytes.

    Servers print a token by decoding its bytes alone: pieces of a character become nothing or a replacement mark,
    control tokens nothing or their name. Several tokens can share a text then; :meth:`id_of` does not guess.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not all(hasattr(tokenizer, name) for name in ("convert_ids_to_tokens", "decode", "get_vocab")):
            raise UserError("tokenizer", type(tokenizer).__name__, "a tokenizer of transformers")
        self.tokenizer = tokenizer
        self.controls = special_ids(tokenizer)

    @cached_property
    def bytes(self) -> list[bytes]:
        """Content of every token; that of a control token is its name."""
        return [content or b"" for content in token_bytes(self.tokenizer)]

    def texts(self, number: int) -> set[str]:
        """How a server may print token ``number``."""
        content = self.bytes[number]
        found = {content.decode("utf-8", "ignore"), content.decode("utf-8", "replace")}
        return found | {""} if number in self.controls else found

    def id_of(self, text: str) -> int | None:
        """The one token with this text; None if there is none, or several."""
        return self._ids.get(text)

    def is_text(self, number: int, text: str) -> bool:
        """Whether a server may print token ``number`` as ``text``."""
        # Servers that decode a token alone lose the space that a word of a SentencePiece vocabulary begins with.
        return text in self.texts(number) or text in {one.removeprefix(" ") for one in self.texts(number)}

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The text that is cut into just these tokens; None if there is none (not how the tokenizer cuts it)."""
        text = self.decode(ids)
        return text if self.encode(text) == list(ids) else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens by their names."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with no other added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def _ids(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for number in range(len(self.bytes)):
            for text in self.texts(number):
                found[text] = None if text in found else number
        return found
