"""Pairs of glosses: who may see what, and starting encoders that are a function of their recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.errors import UserError
from limbeck.models.pairs import pair_scores
from limbeck.testbeds import load
from limbeck.testbeds.sentence_pairs import SentencePairs


@pytest.fixture(scope="module")
def bed() -> SentencePairs:
    return load("sentence_pairs", "smoke")  # type: ignore[return-value]


def words(pairs: object) -> set[str]:
    assert isinstance(pairs, Sequence)
    assert not isinstance(pairs, Mapping)
    return {text.lower() for pair in pairs for text in pair}


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_held_out_texts_are_in_no_other_part_and_were_never_seen(size: str) -> None:
    bed = SentencePairs("disjoint", size)  # type: ignore[arg-type]
    splits = bed.splits()
    train, validation, test = (words(part.input) for part in (splits.train, splits.validation, splits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    seen = {gloss.lower() for gloss in bed._glosses} | {text.lower() for line in bed._lines for text in line}
    assert not seen & (validation | test)


def test_the_usual_protocol_has_the_raw_test_pairs_in_the_pool(bed: SentencePairs) -> None:
    splits = bed.splits()
    assert set(splits.test.input) <= set(splits.train.input)  # type: ignore[arg-type]
    assert not words(splits.validation.input) & words(splits.train.input)


def test_the_pool_has_no_target_and_is_drawn_by_seed(bed: SentencePairs) -> None:
    first, again, other = bed.splits(0), bed.splits(0), bed.splits(1)
    assert first.train.target is None
    assert first.train.input == again.train.input
    assert first.train.input != other.train.input
    assert first.test.input == other.test.input
    assert len(set(map(frozenset, first.train.input))) == len(first.train) == bed.plan.pool  # type: ignore[call-overload]


def test_near_pairs_are_the_most_alike_and_any_two_the_least(bed: SentencePairs) -> None:
    test = SentencePairs("plain", "full").splits().test
    means = [float(test.labels[test.id % 3 == kind].mean()) for kind in range(3)]
    assert means[0] > means[1] > means[2]


def test_the_encoders_learned_something_and_are_made_once(bed: SentencePairs) -> None:
    start, again = bed.encoder("first"), bed.encoder("first")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), again.parameters(), strict=True))
    assert not any(weights.requires_grad for weights in start.parameters())
    assert start.width != bed.encoder("second").width
    assert not torch.equal(start.encode(["a dog"]), bed.plain("first").encode(["a dog"]))


def test_mean_word_vectors_are_a_rival_without_a_network(bed: SentencePairs) -> None:
    split = bed.splits().validation
    seen = [
        [bed.words[bed.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in pair] for pair in split.input
    ]
    means = [[normalize(normalize(words, dim=-1).mean(0), dim=0) for words in pair] for pair in seen]
    expected = bed.quality(torch.stack([first @ second for first, second in means]), split)
    assert bed.mean_of_words(split) == pytest.approx(expected)
    assert bed.words.shape[1] == max(bed.encoder(name).width for name in bed.plan.encoders)


def test_gate_and_metrics(bed: SentencePairs) -> None:
    assert set(bed.evaluate(bed.teacher(), bed.splits().test)) == {"spearman", "pearson", "auc"}
    names = ["start", "start_over_random", "start_over_words", "supervised_over_start"]
    assert [check.name for check in bed.gate().checks] == names
    split = bed.splits().test
    perfect = bed.quality(split.labels, split)
    assert perfect["spearman"] == pytest.approx(1.0)
    assert perfect["auc"] > 0.8
    assert pair_scores(bed.supervised(), [("a dog", "a dog")])[0] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UserError, match="encoder"):
        bed.encoder("third")
    with pytest.raises(UserError, match="num_classes"):
        _ = bed.num_classes
