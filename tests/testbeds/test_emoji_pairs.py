"""Emoji and their names: two artists, and concepts held out whole."""

from __future__ import annotations

from limbeck.data.words import UNKNOWN
from limbeck.testbeds.emoji_pairs import EmojiPairs

BED = EmojiPairs(size="smoke")


def test_concepts_are_held_out_whole() -> None:
    splits, count = BED.splits(), len(BED.texts)
    concepts = [set((part.id % count).tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not concepts[0] & concepts[1] | concepts[0] & concepts[2] | concepts[1] & concepts[2]
    assert len(splits.train) == 2 * len(concepts[0])
    assert len(set(splits.train.id.tolist())) == len(splits.train)


def test_both_drawings_share_one_description() -> None:
    train, half = BED.splits().train, BED.plan.train
    assert (train.labels[:half] == train.labels[half:]).all()
    given = train.input
    assert (given["input_ids"][:half] == given["input_ids"][half:]).all()  # type: ignore[call-overload]
    assert (given["pixel_values"][:half] != given["pixel_values"][half:]).flatten(1).any(1).all()  # type: ignore[call-overload]


def test_drawings_are_where_the_sheet_has_them() -> None:
    number = BED.texts.index("black large square geometric") if "black large square geometric" in BED.texts else None
    assert number is not None
    middle = BED._emoji.twitter[number][:, 12:20, 12:20].float()
    assert middle.mean() < 80
    corners = BED._emoji.google[:, :, 0, 0].float().mean()
    assert corners > 200


def test_words_are_those_of_the_training_part() -> None:
    full = EmojiPairs()
    held = full.splits().test.input["input_ids"]  # type: ignore[call-overload]
    unknown = float((held == UNKNOWN).sum() / (held > 1).sum())
    assert 0 < unknown < 0.4
    assert {"face", "flag", "woman", "animal"} <= set(full.words.words)


def test_base_models_are_kept_and_judged() -> None:
    assert set(BED.evaluate(BED.teacher(), BED.splits().test)) >= {"image_to_text_recall@1", "text_to_image_recall@5"}
    assert BED.gate().passed
