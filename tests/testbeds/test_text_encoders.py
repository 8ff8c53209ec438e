"""Word vectors against the dense computation, and what two views of a text see."""

from __future__ import annotations

import numpy as np
import torch

from limbeck.models.word_pieces import word_pieces
from limbeck.testbeds.text_encoders import Pretraining, Shape, language_model, train_mlm, train_simcse, word_vectors

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
    leading = vectors[:, np.argsort(-np.abs(values), kind="stable")[:4]]
    found = word_vectors(TEXTS, TOKENIZER, 4, scale=0.5).numpy()
    seen = np.linalg.norm(leading, axis=1) > 1e-3
    unit = leading[seen] / np.linalg.norm(leading[seen], axis=1, keepdims=True)
    np.testing.assert_allclose(found[seen] @ found[seen].T, unit @ unit.T * (0.5 * 2) ** 2, atol=1e-3)
    assert np.abs(found[~seen]).max() < 1e-3


def test_both_stages_learn_and_the_same_recipe_gives_the_same_weights() -> None:
    plan = Pretraining(mlm_samples=256, mlm_batch=8, simcse_samples=64, simcse_batch=8)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = language_model(SHAPE, TOKENIZER)
        before = [weights.clone() for weights in model.parameters()]
        torch.manual_seed(len(made))
        train_mlm(model, TOKENIZER, [(text, other) for text in TEXTS for other in TEXTS], plan)
        assert not any(torch.equal(a, b) for a, b in zip(before, model.cls.parameters(), strict=False))
        made.append(model)
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_simcse_draws_views_of_one_text_together() -> None:
    from limbeck.models.sentence import SentenceEncoder

    torch.manual_seed(0)
    encoder = SentenceEncoder(language_model(SHAPE, TOKENIZER).base_model, TOKENIZER, max_length=8)  # type: ignore[arg-type]
    spread = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    train_simcse(encoder, TEXTS, Pretraining(simcse_samples=400, simcse_batch=8, simcse_lr=3e-3))
    after = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    others = ~torch.eye(len(TEXTS), dtype=torch.bool)
    assert float(after[others].mean()) < float(spread[others].mean()) - 0.2
    assert not encoder.training
