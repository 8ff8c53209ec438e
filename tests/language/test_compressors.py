"""Teachers of compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.data.word_spans import split_spans
from limbeck.errors import UserError
from limbeck.language.compressors import INSTRUCTION, Instructed, Known, Saliency, pieces, without


class Counter:
    """Stands for a sentence encoder: a vector counts three words."""

    def encode(self, texts: list[str], batch_size: int = 64) -> torch.Tensor:
        self.asked = texts
        return torch.tensor([[1.0, text.count("cat") * 2.0, text.count("dog") * 1.0] for text in texts])


def test_saliency_is_what_the_vector_loses() -> None:
    encoder: Any = Counter()
    text = "A cat, a dog."
    scores = Saliency(encoder).scores(text)
    words = [word.text for word in split_spans(text)]
    assert words == ["A", "cat", ",", "a", "dog", "."]
    whole = torch.tensor([1.0, 2.0, 1.0])
    expected = {"cat": torch.tensor([1.0, 0.0, 1.0]), "dog": torch.tensor([1.0, 2.0, 0.0])}
    for word, score in zip(words, scores):
        loss = 1 - torch.cosine_similarity(whole, expected.get(word, whole), dim=0)
        torch.testing.assert_close(score, loss, atol=1e-6, rtol=0)
    assert len(encoder.asked) == 1 + 4, "no pass for punctuation"
    assert Saliency(encoder, rate=0.33)(text) == "cat dog"
    assert Saliency(encoder).scores("...").tolist() == [0.0] * 3


def test_a_word_is_cut_out_without_a_hole() -> None:
    text = "one two three"
    assert [without(text, word) for word in split_spans(text)] == ["two three", "one three", "one two"]


def test_a_chat_model_is_asked_piece_by_piece() -> None:
    asked = []

    def answer(prompt: str) -> str:
        asked.append(prompt.removeprefix(INSTRUCTION))
        return " " + prompt.split()[-1] + "\n"

    text = "a b c. d e f\ng h"
    assert Instructed(answer, longest=5)(text) == "c. f h"
    assert asked == ["a b c.", "d e f\n", "g h"]
    assert all(len(split_spans(part)) <= 5 for part in pieces("x " * 23, 5))
    assert pieces("", 5) == []
    assert Instructed(answer)("") == ""


def test_known_pairs() -> None:
    assert Known({"a b": "a"})("a b") == "a"
    with pytest.raises(UserError, match="text"):
        Known({"a b": "a"})("c")
    with pytest.raises(UserError, match="longest"):
        Instructed(str, longest=0)
