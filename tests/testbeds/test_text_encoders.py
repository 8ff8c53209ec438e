"""Word vectors against the dense computation, weights that compare from the first step, and views of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from limbeck.models.sentence import SentenceEncoder
from limbeck.models.word_pieces import word_pieces
from limbeck.testbeds import text_encoders
from limbeck.testbeds.text_encoders import (
    Pretraining,
    Shape,
    blank,
    prepare,
    train_pairs,
    train_simcse,
    view,
    word_vectors,
)

TEXTS = ["cat purrs", "cat sleeps", "dog barks", "dog sleeps", "bird sings", "bird flies", "fish swims", "cat and dog"]
TOKENIZER = word_pieces(TEXTS * 3, 80)
SHAPE = Shape(layers=1, width=16, heads=2, inner=16, vocabulary=80, max_length=8)


def test_word_vectors_are_the_leading_singular_vectors_of_positive_information() -> None:
    size = len(TOKENIZER)
    rows = np.zeros((len(TEXTS), size))
    for number, ids in enumerate(TOKENIZER(TEXTS, add_special_tokens=False)["input_ids"]):
        rows[number, ids] = 1.0
    together, count = rows.T @ rows, rows.sum(0) + 1
    with np.errstate(divide="ignore"):
        information = np.log(together * len(TEXTS) / np.outer(count, count))
    np.fill_diagonal(information, 0.0)
    values, vectors = np.linalg.eigh(np.maximum(information, 0.0))
    order = np.argsort(-np.abs(values), kind="stable")
    # Cut where singular values differ: of equal ones any direction is right.
    width = 2 + int(np.argmin(np.diff(np.abs(values[order[1:8]]))))
    leading = vectors[:, order[:width]]
    found = word_vectors(TEXTS, TOKENIZER, width).numpy()
    np.testing.assert_allclose(found @ found.T, leading @ leading.T, atol=1e-3)
    seen = np.linalg.norm(leading, axis=1) > 1e-3
    assert np.abs(found[~seen]).max() < 1e-3


def prepared() -> Any:
    torch.manual_seed(0)
    body = blank(SHAPE, TOKENIZER)
    prepare(body, torch.randn(len(TOKENIZER), SHAPE.width))
    return body


def test_at_the_start_tokens_attend_to_their_likes_and_take_them_away() -> None:
    layer = prepared().encoder.layer[0].attention
    query, key, size = layer.self.query.weight, layer.self.key.weight, SHAPE.width // SHAPE.heads
    assert torch.equal(query, key)
    for rows in query.split(size):
        torch.testing.assert_close(rows @ rows.T, 0.64 * torch.eye(size))
    moved = layer.output.dense.weight @ layer.self.value.weight
    torch.testing.assert_close(moved, -0.5 * torch.eye(SHAPE.width), atol=1e-5, rtol=0)
    lengths = prepared().embeddings.word_embeddings.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.05 * SHAPE.width**0.5))


def test_a_view_lacks_words_and_is_drawn_by_its_seed() -> None:
    text = " ".join(map(str, range(2000)))
    first, again, other = (view(text, 0.4, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.split()) == pytest.approx(1200, abs=80)
    assert [int(word) for word in first.split()] == sorted(int(word) for word in first.split())
    assert view("cat", 1.0, 0) == "cat", "never without all"


def test_rows_are_two_views_of_one_text_or_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, answers = [], []
    collate = text_encoders.CrossEncoder.collate
    loss = text_encoders.losses.soft_bce

    def seen(self: Any) -> Any:
        def noted(pairs: Any) -> Any:
            rows.extend(pairs)
            return collate(self)(pairs)

        return noted

    def asked(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        answers.extend(target.tolist())
        return loss(logits, target)

    monkeypatch.setattr(text_encoders.CrossEncoder, "collate", seen)
    monkeypatch.setattr(text_encoders.losses, "soft_bce", asked)
    train_pairs(prepared(), TOKENIZER, TEXTS, Pretraining(pair_samples=64, pair_batch=8, pair_hidden=0.0))
    assert [first == second for first, second in rows] == [bool(answer) for answer in answers]
    assert 0.2 < sum(answers) / len(answers) < 0.8


def test_the_same_recipe_gives_the_same_weights_whatever_was_drawn_before() -> None:
    made = []
    for number in range(2):
        body = prepared()
        before = body.embeddings.word_embeddings.weight.detach().clone()
        torch.manual_seed(number)
        train_pairs(body, TOKENIZER, TEXTS, Pretraining(pair_samples=32, pair_batch=8))
        assert not torch.equal(before, body.embeddings.word_embeddings.weight)
        made.append(body)
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_simcse_draws_views_of_one_text_together() -> None:
    encoder = SentenceEncoder(prepared(), TOKENIZER, max_length=8)
    spread = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    train_simcse(encoder, TEXTS, Pretraining(simcse_samples=400, simcse_batch=8, simcse_lr=3e-3))
    after = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    others = ~torch.eye(len(TEXTS), dtype=torch.bool)
    assert float(after[others].mean()) < float(spread[others].mean())
    assert not encoder.training
