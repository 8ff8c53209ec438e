"""Captions of the sprite world: true where they should be, and noise that is what its record says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from limbeck.data.captions import Caption, Thing, captions, vocabulary, with_noise
from limbeck.data.sprites import SpriteWorld
from limbeck.errors import UserError

IDS = torch.arange(400)
SCENES = SpriteWorld(pixels=16, objects=(1, 3)).scenes(IDS)


def test_captions_read_as_english() -> None:
    caption = Caption((Thing(4, 0), Thing(17, 2, 1), Thing(None, None)), (0, 3))
    assert str(caption) == "a red coat left of a striped blue seven below a thing"


def test_captions_say_what_is_there() -> None:
    for number, caption in enumerate(captions(SCENES, objects=3, textures=True)):
        present = SCENES.kind[number] >= 0
        assert [thing.kind for thing in caption.things] == SCENES.kind[number][present].tolist()
        assert [thing.colour for thing in caption.things] == SCENES.colour[number][present].tolist()
        for place, relation in enumerate(caption.relations):
            one, other = SCENES.centre[number][place], SCENES.centre[number][place + 1]
            axis, sign = (0, -1) if relation == 0 else (0, 1) if relation == 1 else (1, -1) if relation == 2 else (1, 1)
            assert (one - other)[axis] * sign >= 0
            assert (one - other)[axis].abs() >= (one - other)[1 - axis].abs()
    assert max(len(caption.things) for caption in captions(SCENES)) == 2


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(vocabulary())
    noisy = with_noise(captions(SCENES, textures=True), IDS, 0.5)
    assert all(word in words for caption in noisy for word in str(caption).split())


def test_noise_is_what_its_record_says() -> None:
    true = captions(SCENES)
    noisy = with_noise(true, IDS, 0.6)
    for one, other in zip(true, noisy, strict=True):
        if other.noise == "none":
            assert one == other
        elif other.noise == "other scene":
            assert any(other.things == each.things for each in true if each is not one)
        else:
            pairs = list(zip(one.things, other.things, strict=True))
            changed = [(a, b) for a, b in pairs if a != b]
            assert len(changed) == 1
            values = [(x, y) for x, y in zip(vars(changed[0][0]).values(), vars(changed[0][1]).values(), strict=True)]
            differences = [(x, y) for x, y in values if x != y]
            assert len(differences) == 1
            assert (differences[0][1] is None) == (other.noise == "dropped")
    counts = Counter(caption.noise for caption in noisy)
    assert 0.5 < 1 - counts["none"] / len(noisy) < 0.7
    assert all(0.13 < counts[name] / len(noisy) < 0.27 for name in ("dropped", "swapped", "other scene"))


def test_noise_depends_on_the_id_and_the_seed_alone() -> None:
    true = captions(SCENES)
    assert with_noise(true, IDS, 0.5) == with_noise(true, IDS, 0.5)
    assert with_noise(true, IDS, 0.5) != with_noise(true, IDS, 0.5, seed=1)
    assert with_noise(true, IDS, 0.0) == true
    more = with_noise(true, IDS, 0.9)
    less = with_noise(true, IDS, 0.5)
    assert all(b.noise != "none" for a, b in zip(less, more, strict=True) if a.noise != "none")


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(UserError, match="share"):
        with_noise(captions(SCENES), IDS, 1.5)
