"""Labels of words on their sub-words."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.word_labels import special_ends, trim, word_table
from limbeck.data.words import IGNORED
from limbeck.errors import UserError
from limbeck.models.word_pieces import word_pieces

TEXTS = [["unhappily", "we", "left"], ["we"]]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return word_pieces(["un happ ily we left unhappy happily"], 40)


def test_every_sub_word_has_the_label_of_its_word(tokenizer: object) -> None:
    table = word_table(tokenizer, TEXTS, [[1, 0, 1], [1]])
    size = len(tokenizer("unhappily", add_special_tokens=False)["input_ids"])  # type: ignore[operator]
    assert size > 1
    left = len(tokenizer("left", add_special_tokens=False)["input_ids"])  # type: ignore[operator]
    assert table.word[0].tolist() == [-1, *[0] * size, 1, *[2] * left, -1]
    assert table.target[0].tolist() == [IGNORED, *[1] * size, 0, *[1] * left, IGNORED]
    alone = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in TEXTS[0]]  # type: ignore[operator]
    first, last = special_ends(tokenizer)
    assert table.input_ids[0].tolist() == [first, *[piece for ids in alone for piece in ids], last]


def test_padding_and_special_tokens_are_no_labels(tokenizer: object) -> None:
    """The released script counts padding as "drop" and puts the last special token's label before the last word's."""
    table = word_table(tokenizer, TEXTS, [[1, 0, 1], [1]])
    assert table.lengths[1] == 3
    assert table.target[1].tolist() == [IGNORED, 1, IGNORED] + [IGNORED] * (table.target.shape[1] - 3)
    assert table.attention_mask[1].tolist() == [1, 1, 1] + [0] * (table.target.shape[1] - 3)
    assert bool((table.target[table.attention_mask == 0] == IGNORED).all())


def test_cut_unlabelled_and_trimmed(tokenizer: object) -> None:
    table = word_table(tokenizer, TEXTS, max_length=4)
    assert table.input_ids.shape == (2, 4)
    assert bool((table.target == IGNORED).all())
    batch = {"input": {"input_ids": torch.ones(2, 9), "attention_mask": torch.eye(2, 9)}, "target": torch.ones(2, 9)}
    assert trim(batch)["target"].shape == (2, 1)
    assert trim(batch)["input"]["input_ids"].shape == (2, 1)
    assert table.samples(7)["id"].tolist() == [7, 8]


def test_bad_input(tokenizer: object) -> None:
    with pytest.raises(UserError, match="labels"):
        word_table(tokenizer, TEXTS, [[1], [1]])
    with pytest.raises(UserError, match="max_length"):
        word_table(tokenizer, TEXTS, max_length=2)
