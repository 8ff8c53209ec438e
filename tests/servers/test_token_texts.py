from __future__ import annotations

import pytest
import tokenizers
import transformers

from limbeck.errors import UserError
from limbeck.servers import TokenTexts
from tests.servers.imitation import TEXT, tokenizer


def test_bytes_add_up_to_the_text() -> None:
    table = TokenTexts(tokenizer())
    text = "<|start|>caf\u00e9 \U0001f600 Paris \u4e16"
    ids = table.encode(text)
    assert b"".join(table.bytes[number] for number in ids).decode() == text


def test_a_text_names_its_token_or_none() -> None:
    table = TokenTexts(tokenizer())
    for number in table.encode("the capital of"):
        text = table.bytes[number].decode()
        assert len(text) > 1
        assert table.id_of(text) == number
        assert table.is_text(number, text)
        assert table.is_text(number, text.removeprefix(" "))
    assert table.id_of("") is None, "control tokens and pieces of characters share it"
    assert table.id_of("\ufffd") is None
    assert table.id_of(" ") is None, "a space, and a space with the first byte of a character"
    assert table.id_of("no such token") is None
    assert table.id_of("<|end|>") == 0
    assert table.texts(0) == {"", "<|end|>"}
    assert not table.is_text(0, "Paris")


def test_only_tokens_as_the_tokenizer_cuts_them_have_a_text() -> None:
    table = TokenTexts(tokenizer())
    ids = table.encode(" capital of")
    assert table.text_of(ids) == " capital of"
    letters = [table.encode(letter)[0] for letter in "capital"]
    assert table.text_of(letters) is None


def test_sentencepiece_spaces_and_bytes() -> None:
    vocabulary = {"<s>": 0, "\u2581the": 1, "<0x0A>": 2, "the": 3, "\u2581": 4}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    table = TokenTexts(transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>"))
    assert table.bytes == [b"<s>", b" the", b"\n", b"the", b" "]
    assert len(TEXT) > 0
    with pytest.raises(UserError, match="tokenizer: given int"):
        TokenTexts(3)
