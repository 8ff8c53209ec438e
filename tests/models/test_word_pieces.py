from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.models.word_pieces import SPECIAL, open_word_pieces, word_pieces

TEXTS = ["a cat sleeps on the sofa", "the cat is asleep", "Rain falls, and falls, on the city"] * 3


def test_pairs_are_framed_and_segments_told_apart() -> None:
    tokens = word_pieces(TEXTS, 60)("a cat", "the rain")
    assert tokens.tokens()[0] == "[CLS]"
    assert tokens.tokens().count("[SEP]") == 2
    assert sorted(set(tokens["token_type_ids"])) == [0, 1]
    assert [word_pieces(TEXTS, 60).convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2, 3, 4]


def test_case_does_not_count_and_unseen_letters_are_unknown() -> None:
    tokenizer = word_pieces(TEXTS, 60)
    assert tokenizer("RAIN")["input_ids"] == tokenizer("rain")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("xyz")["input_ids"]


def test_the_same_texts_give_the_same_pieces_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; from limbeck.models.word_pieces import word_pieces;"
        f"word_pieces({TEXTS!r}, 60).backend_tokenizer.save(sys.argv[1])"
    )
    for name in ("first", "second"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert open_word_pieces(tmp_path / "first").get_vocab() == word_pieces(TEXTS, 60).get_vocab()


def test_inner_letters_are_pieces_and_no_special_tokens() -> None:
    tokenizer = word_pieces(TEXTS, 60)
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    assert tokenizer.decode(tokenizer("cat sofa city")["input_ids"], skip_special_tokens=True) == "cat sofa city"
    assert "##a" not in tokenizer.tokenize("##a")


def test_a_vocabulary_needs_room() -> None:
    with pytest.raises(UserError, match="size"):
        word_pieces(TEXTS, 5)
