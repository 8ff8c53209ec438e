"""Captioned sprites: noise where it is asked, none in the test part, base models that are kept."""

from __future__ import annotations

import torch

from limbeck import testbeds
from limbeck.testbeds.captioned_sprites import CaptionedSprites
from limbeck.testbeds.pairs import EncodedPairs


def test_only_training_captions_are_spoilt_and_by_seed() -> None:
    clean, noisy = (CaptionedSprites(regime, "smoke") for regime in ("plain", "noise_50"))
    assert all(caption.noise == "none" for caption in clean.told(0))
    spoilt = torch.tensor([caption.noise != "none" for caption in noisy.told(0)])
    assert 0.4 < float(spoilt.double().mean()) < 0.6
    true, told = clean.splits(0), noisy.splits(0)
    same = (true.train.input["input_ids"] == told.train.input["input_ids"]).all(1)  # type: ignore[call-overload]
    assert torch.equal(~same, spoilt)
    assert torch.equal(true.test.input["input_ids"], told.test.input["input_ids"])  # type: ignore[call-overload]
    other = torch.tensor([caption.noise != "none" for caption in noisy.told(1)])
    assert not torch.equal(spoilt, other)


def test_parts_are_disjoint_and_targets_number_captions() -> None:
    splits = CaptionedSprites("noise_50", "smoke").splits()
    ids = [set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    texts = splits.train.input["input_ids"]  # type: ignore[call-overload]
    same = (texts[:, None] == texts[None]).all(2)
    assert torch.equal(same, splits.train.labels[:, None] == splits.train.labels[None])


def test_what_students_begin_with() -> None:
    bed = CaptionedSprites("plain", "smoke")
    classifier, aligned = bed.pretrained(bed.plan.student, bed.plan.recipe), bed.aligned()
    first, one, other = bed.unaligned(0), bed.student(0), bed.student(1)
    for name, weight in classifier.encoder.state_dict().items():  # type: ignore[operator, union-attr]
        assert torch.equal(weight, first.image.state_dict()[name]), name
    for name, weight in aligned.state_dict().items():
        assert torch.equal(weight, one.state_dict()[name]), name
        assert torch.equal(weight, other.state_dict()[name]), name
    assert not torch.equal(one.words.weight, other.words.weight)  # type: ignore[arg-type, union-attr]
    assert all(weight.requires_grad for weight in one.parameters())


def test_the_small_clip_is_judged_both_ways() -> None:
    bed = CaptionedSprites("plain", "smoke")
    figures = bed.evaluate(bed.teacher(), bed.splits().test)
    assert set(figures) == {f"{a}_to_{b}_recall@{k}" for a, b in (("image", "text"), ("text", "image")) for k in (1, 5)}
    assert bed.gate().passed


def test_duplicate_captions_are_right_too() -> None:
    bed = CaptionedSprites("plain", "smoke")
    split = bed.splits().test.subset([0, 1, 2, 0])
    pairs = EncodedPairs(bed.student(0), split)
    assert pairs.right.sum() == 6
    judged = pairs.judge(torch.tensor([0, 1, 3]), torch.tensor([0, 2, 3]))
    torch.testing.assert_close(judged[0], judged[2])


def test_it_is_known_by_name() -> None:
    assert testbeds.load("captioned_sprites:noise_30").plan.noise == 0.3  # type: ignore[attr-defined]
