"""Pairs of glosses: who may see what, and starting encoders that are a function of their recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.pairs import pair_scores
from limbeck.testbeds import load
from limbeck.testbeds.sentence_pairs import SentencePairs
from limbeck.testbeds.text_encoders import mask_tokens


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


def test_gate_and_metrics(bed: SentencePairs) -> None:
    assert set(bed.evaluate(bed.teacher(), bed.splits().test)) == {"spearman", "pearson", "auc"}
    assert [check.name for check in bed.gate().checks] == ["start", "start_over_plain", "supervised_over_start"]
    split = bed.splits().test
    perfect = bed.quality(split.labels, split)
    assert perfect["spearman"] == pytest.approx(1.0)
    assert perfect["auc"] > 0.8
    assert pair_scores(bed.supervised(), [("a dog", "a dog")])[0] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UserError, match="encoder"):
        bed.encoder("third")
    with pytest.raises(UserError, match="num_classes"):
        _ = bed.num_classes


def test_masks_hide_eight_in_ten_and_never_special_tokens(bed: SentencePairs) -> None:
    tokenizer = bed.encoder("first").tokenizer
    ids = torch.full((200, 50), 20)
    ids[:, 0] = tokenizer.cls_token_id
    special = torch.tensor(tokenizer.all_special_ids)
    hidden, guessed = mask_tokens(ids, special, tokenizer, 0.15, torch.Generator().manual_seed(0))
    assert not guessed[:, 0].any()
    assert torch.equal(hidden[~guessed], ids[~guessed])
    assert float(guessed[:, 1:].float().mean()) == pytest.approx(0.15, abs=0.02)
    assert float((hidden[guessed] == tokenizer.mask_token_id).float().mean()) == pytest.approx(0.8, abs=0.04)
    assert float((hidden[guessed] == 20).float().mean()) == pytest.approx(0.1, abs=0.03)
