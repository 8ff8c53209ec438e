from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from limbeck.errors import UserError
from limbeck.tokens import begins_word, byte_letters, special_ids, token_bytes, token_kind, vocabulary_size
from tests.models.tiny import byte_tokenizer, full_byte_tokenizer, piece_tokenizer, word_tokenizer


def test_byte_letters_are_those_of_the_library() -> None:
    assert set(byte_letters()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))
    tokenizer = full_byte_tokenizer()
    table = token_bytes(tokenizer)
    for text in ("café \U0001f642 漢字", "שלום", "a\n\tb"):
        assert b"".join(table[number] for number in tokenizer(text).input_ids) == text.encode()


def test_kinds() -> None:
    assert token_kind(full_byte_tokenizer()) == token_kind(byte_tokenizer()) == "byte_level"
    assert token_kind(piece_tokenizer()) == "sentencepiece"
    assert token_kind(word_tokenizer()) == "wordpiece"
    assert token_kind(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))) == "plain"
    with pytest.raises(UserError, match="a fast tokenizer"):
        token_kind(3)


def test_pieces_and_words() -> None:
    tokenizer = piece_tokenizer()
    table = token_bytes(tokenizer)
    ids = tokenizer("a good \U0001f642", add_special_tokens=False).input_ids
    assert b"".join(table[number] for number in ids) == " a good \U0001f642".encode()
    assert table[tokenizer.eos_token_id] == b"</s>"
    assert special_ids(tokenizer) >= {1, 2}
    words = word_tokenizer()
    assert token_bytes(words)[words.get_vocab()["##ed"]] == b"ed"
    assert vocabulary_size(words) == len(words)


def test_where_a_word_is_over() -> None:
    tokenizer = piece_tokenizer()
    found, vocabulary = begins_word(tokenizer), tokenizer.get_vocab()
    assert all(found[vocabulary[token]] for token in ("\u2581good", "</s>", "<0x0A>", "\u2581"))
    assert not any(found[vocabulary[token]] for token in ("oo", "<0x41>", "f"))
