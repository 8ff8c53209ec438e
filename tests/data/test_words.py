"""Words as numbers, and masked words: shares, labels, replay."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.loaders import TensorLoader
from limbeck.data.views import view_seeds
from limbeck.data.words import CLASS, IGNORED, MASK, PAD, UNKNOWN, MaskWords, Words
from limbeck.errors import UserError

WORDS = Words(["a", "red", "coat", "bag"], length=6)


def test_texts_become_numbers_and_back() -> None:
    given = WORDS(["A red coat", "a bag, a red hat of wool"])
    assert given["input_ids"].tolist() == [[CLASS, 4, 5, 6, PAD, PAD], [CLASS, 4, 7, 4, 5, UNKNOWN]]
    assert given["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert WORDS.text(given["input_ids"][0]) == "a red coat"


def test_a_vocabulary_of_texts() -> None:
    words = Words.of(["red hat", "red coat", "Blue coat"], 5, at_least=2)
    assert words.words[4:] == ("coat", "red")
    assert len(words) == 6


def sample(rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 60, (rows, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 15:] = CLASS, PAD
    return ids, view_seeds(0, 0, torch.arange(rows))


def test_shares_are_berts() -> None:
    ids, view = sample()
    corrupted, labels = MaskWords(60).corrupt(ids, view)
    words, chosen = ids >= 4, labels != IGNORED
    assert abs(float(chosen[words].double().mean()) - 0.15) < 0.01
    masked = (corrupted == MASK) & chosen
    kept = (corrupted == ids) & chosen
    assert abs(float(masked.sum() / chosen.sum()) - 0.8) < 0.03
    # A random word is the old one now and then.
    assert abs(float(kept.sum() / chosen.sum()) - 0.1) < 0.03


def test_only_words_are_chosen_and_only_chosen_change() -> None:
    ids, view = sample()
    corrupted, labels = MaskWords(60, 0.9).corrupt(ids, view)
    chosen = labels != IGNORED
    assert not chosen[ids < 4].any()
    assert torch.equal(corrupted[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert not torch.isin(corrupted[chosen], torch.tensor([PAD, CLASS])).any()


def test_holes_are_a_function_of_the_view() -> None:
    ids, view = sample()
    mask = MaskWords(60)
    one, again = mask.corrupt(ids, view), mask.corrupt(ids[100:101], view[100:101])
    assert torch.equal(one[0][100:101], again[0])
    other = mask.corrupt(ids, view_seeds(0, 1, torch.arange(len(ids))))
    assert not torch.equal(one[1], other[1])


def test_as_a_transform_the_input_stays_whole() -> None:
    ids, _ = sample(30)
    loader = TensorLoader({"input": {"input_ids": ids}}, 30, shuffle=False, transform=MaskWords(60, 0.5))
    batch = next(iter(loader))
    assert torch.equal(batch["input"]["input_ids"], ids)
    assert (batch["corrupted_ids"] != ids).any()
    with pytest.raises(UserError, match="batch"):
        MaskWords(60)({"input": ids, "view": torch.arange(30)})


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="share"):
        MaskWords(60, 1.5)
    with pytest.raises(UserError, match="masked, replaced"):
        MaskWords(60, masked=0.8, replaced=0.3)
    with pytest.raises(UserError, match="vocabulary"):
        MaskWords(3)
