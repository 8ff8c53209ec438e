"""Bi- and cross-encoder on one body: scores, orders, weights that move between them, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel

from limbeck.errors import UserError
from limbeck.models.pairs import (
    CrossEncoder,
    PairCollate,
    body_of,
    pair_cosine,
    pair_scores,
    transfer_body,
    with_body,
)
from limbeck.models.sentence import SentenceEncoder
from limbeck.models.word_pieces import word_pieces

PAIRS = [("a cat sleeps on the sofa", "the cat is asleep"), ("rain", "it is raining in town"), ("rain", "a cat sleeps")]
TEXTS = [text for pair in PAIRS for text in pair]
TOKENIZER = word_pieces(TEXTS, 80)


def config(kind: Any = BertConfig, width: int = 16, layers: int = 2) -> Any:
    return kind(
        vocab_size=len(TOKENIZER),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        type_vocab_size=2,
        pad_token_id=TOKENIZER.pad_token_id,
    )


def bi(seed: int = 0, pooling: str = "cls", **options: Any) -> SentenceEncoder:
    torch.manual_seed(seed)
    return SentenceEncoder(BertModel(config(**options)), TOKENIZER, pooling=pooling, max_length=16).eval()


def cross(seed: int = 1) -> CrossEncoder:
    torch.manual_seed(seed)
    return CrossEncoder.on(BertModel(config()), TOKENIZER, max_length=32).eval()


def body(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in body_of(model).state_dict().items() if not n.startswith("pooler.")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_batch_of_pairs_gives_the_cosines_of_its_sentences(pooling: str) -> None:
    encoder = bi(pooling=pooling)
    batch = {"input": PairCollate(TOKENIZER, False, 16)(PAIRS), "id": torch.arange(3)}
    vectors = [encoder.encode([pair[side] for pair in PAIRS]) for side in (0, 1)]
    expected = cosine_similarity(*vectors)
    torch.testing.assert_close(pair_cosine(encoder, batch)["score"].detach(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair_scores(encoder, PAIRS), expected, atol=1e-5, rtol=1e-5)


def test_a_joined_pair_is_one_row_with_two_segments_and_the_longer_sentence_is_cut_first() -> None:
    tokens = PairCollate(TOKENIZER, True, 10)(PAIRS)
    assert tokens["input_ids"].shape[0] == 3
    assert tokens["input_ids"].shape[1] == 10
    separators = (tokens["input_ids"] == TOKENIZER.sep_token_id).sum(1)
    assert separators.tolist() == [2, 2, 2]
    assert set(tokens["token_type_ids"].unique().tolist()) == {0, 1}


def test_scores_do_not_depend_on_the_batch_and_both_orders_are_symmetric() -> None:
    network = cross()
    turned = [(second, first) for first, second in PAIRS]
    torch.testing.assert_close(network.score(PAIRS, 1), network.score(PAIRS, 3), atol=1e-6, rtol=1e-5)
    assert not torch.equal(network.score(PAIRS), network.score(turned))
    torch.testing.assert_close(network.score(PAIRS, both_orders=True), network.score(turned, both_orders=True))
    assert network.score([]).shape == (0,)


def test_the_body_moves_both_ways_and_the_head_is_drawn_anew() -> None:
    encoder = bi()
    torch.manual_seed(5)
    first = CrossEncoder.on(encoder, max_length=32)
    second = CrossEncoder.on(encoder, max_length=32)
    assert same(body(first), body(encoder))
    assert same(body(second), body(encoder))
    assert not torch.equal(first.classifier.classifier.weight, second.classifier.classifier.weight)
    back = with_body(bi(seed=9), first)
    torch.testing.assert_close(back.encode(TEXTS), encoder.encode(TEXTS))


def test_moved_weights_are_copies() -> None:
    encoder = bi()
    before = body(encoder)
    moved = with_body(encoder, encoder)
    with torch.no_grad():
        for weights in moved.parameters():
            weights.add_(1.0)
    assert same(body(encoder), before)
    assert moved.tokenizer is encoder.tokenizer


def test_a_language_model_is_a_body_too() -> None:
    torch.manual_seed(3)
    model = BertForMaskedLM(config())
    assert same(body(CrossEncoder.on(model, TOKENIZER, max_length=32)), body(model))


def test_roberta_moves_as_well() -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(RobertaModel(config(RobertaConfig)), TOKENIZER, pooling="mean", max_length=16)
    assert same(body(CrossEncoder.on(encoder, max_length=32)), body(encoder))


def test_bodies_of_other_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="weight"):
        transfer_body(bi(width=24), bi())
    with pytest.raises(UserError, match="weight"):
        transfer_body(bi(layers=1), bi())
    with pytest.raises(UserError, match="body"):
        body_of(nn.Linear(2, 2))


def test_the_fresh_head_is_decided_by_the_generator() -> None:
    encoder, made = bi(), []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        made.append(CrossEncoder.on(encoder, max_length=32).eval().score(PAIRS))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_folders_open_here_and_in_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    network = cross()
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(CrossEncoder.from_folder(tmp_path, max_length=32).score(PAIRS), network.score(PAIRS))
    np.testing.assert_allclose(
        Theirs(str(tmp_path), device="cpu").predict(PAIRS), network.score(PAIRS).numpy(), atol=1e-6
    )


def test_a_classifier_of_several_labels_is_no_cross_encoder() -> None:
    from transformers import BertForSequenceClassification

    with pytest.raises(UserError, match="num_labels"):
        CrossEncoder(BertForSequenceClassification(config()), TOKENIZER)
    with pytest.raises(UserError, match="max_length"):
        CrossEncoder.on(bi(), max_length=100)
    with pytest.raises(UserError, match="tokenizer"):
        CrossEncoder(cross().classifier).score(PAIRS)


def test_an_odd_number_of_sentences_is_no_batch_of_pairs() -> None:
    with pytest.raises(UserError, match="even"):
        pair_cosine(bi(), {"input": bi().tokenize(TEXTS[:3])})
