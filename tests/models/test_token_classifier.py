"""Scores of words from any encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.errors import UserError
from limbeck.models.token_classifier import TokenClassifier, merged
from limbeck.models.word_pieces import word_pieces

WORDS = ["the", "unhappy", "cat", "left", ".", "it", "was", "happily", "asleep", ".", "nobody", "knew"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_pieces([" ".join(WORDS)], 60)


def body(tokenizer: Any, layers: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False)


def test_words_have_the_mean_of_their_sub_words(tokenizer: Any) -> None:
    model = TokenClassifier.on(body(tokenizer), tokenizer).eval()
    (scores,) = model.word_scores([WORDS])
    assert scores.shape == (len(WORDS),)
    assert bool(((scores > 0) & (scores < 1)).all())
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    ids = [tokenizer.cls_token_id, *(piece for row in pieces for piece in row), tokenizer.sep_token_id]
    with torch.no_grad():
        p = model(torch.tensor([ids]))["logits"].softmax(-1)[0, 1:-1, 1]
    means = torch.stack([part.mean() for part in p.split([len(row) for row in pieces])])
    torch.testing.assert_close(scores, means)
    (first,) = model.word_scores([WORDS], merge="first")
    torch.testing.assert_close(first, torch.stack([part[0] for part in p.split([len(row) for row in pieces])]))


def test_a_batch_changes_no_score(tokenizer: Any) -> None:
    model = TokenClassifier.on(body(tokenizer), tokenizer).eval()
    together = model.word_scores([WORDS[:3], [], WORDS], batch_size=2)
    assert len(together[1]) == 0
    for row, words in zip(together, (WORDS[:3], [], WORDS)):
        torch.testing.assert_close(row, model.word_scores([words])[0])


def test_long_texts_are_read_in_pieces_that_end_at_a_full_stop(tokenizer: Any) -> None:
    model = TokenClassifier.on(body(tokenizer), tokenizer, max_length=22)
    pieces = model.pieces(WORDS)
    assert [word for piece in pieces for word in piece] == WORDS
    assert len(pieces) > 1
    assert all(piece[-1] == "." for piece in pieces[:-1])
    assert model.word_scores([WORDS])[0].shape == (len(WORDS),)
    whole, first = model.word_scores([WORDS])[0], model.word_scores([pieces[0]])[0]
    torch.testing.assert_close(whole[: len(pieces[0])], first)
    hard = TokenClassifier.on(body(tokenizer), tokenizer, max_length=8).pieces([*["cat"] * 30])
    assert sum(map(len, hard)) == 30
    assert len({len(piece) for piece in hard[:-1]}) == 1


def test_causal_students_do_not_see_what_comes(tokenizer: Any) -> None:
    ids = torch.arange(5, 17)[None]
    other = ids.clone()
    other[0, 6:] = 5
    for causal in (True, False):
        model = TokenClassifier.on(body(tokenizer), tokenizer, causal=causal).eval()
        with torch.no_grad():
            moved = (model(ids)["logits"] - model(other)["logits"])[0, :6].abs().max()
        assert (moved == 0) == causal


def test_first_layers_and_their_weights(tokenizer: Any) -> None:
    source = body(tokenizer, layers=3)
    model = TokenClassifier.on(source, tokenizer, layers=(0, 2))
    classifier: Any = model.classifier
    assert classifier.config.num_hidden_layers == 2
    kept, wanted = classifier.bert.encoder.layer[1], source.encoder.layer[2]
    torch.testing.assert_close(dict(kept.named_parameters()), dict(wanted.named_parameters()))
    assert kept.output.dense.weight is not wanted.output.dense.weight


def test_opens_in_transformers_and_here(tokenizer: Any, tmp_path: Path) -> None:
    model = TokenClassifier.on(body(tokenizer), tokenizer).eval()
    model.save_pretrained(tmp_path)
    assert transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).config.num_labels == 2
    again = TokenClassifier.from_folder(tmp_path)
    torch.testing.assert_close(again.word_scores([WORDS]), model.word_scores([WORDS]))


def test_words_that_were_cut_have_no_score() -> None:
    values, word = torch.tensor([9.0, 0.2, 0.4, 0.6, 9.0]), torch.tensor([-1, 0, 0, 1, -1])
    torch.testing.assert_close(merged(values, word, 3), torch.tensor([0.3, 0.6, 0.0]))
    torch.testing.assert_close(merged(values, word, 3, "first"), torch.tensor([0.2, 0.6, 0.0]))


def test_bad_input(tokenizer: Any) -> None:
    model = TokenClassifier.on(body(tokenizer), tokenizer)
    with pytest.raises(UserError, match="merge"):
        model.word_scores([WORDS], merge="max")
    with pytest.raises(UserError, match="max_length"):
        TokenClassifier.on(body(tokenizer), tokenizer, max_length=65)
    with pytest.raises(UserError, match="tokenizer"):
        TokenClassifier.on(body(tokenizer)).word_scores([WORDS])
    config = body(tokenizer).config
    config.num_labels = 3
    with pytest.raises(UserError, match="num_labels"):
        TokenClassifier(transformers.AutoModelForTokenClassification.from_config(config))
