"""WordNet read as text, and its similarity against what can be worked out by hand."""

from __future__ import annotations

import pytest

from limbeck.testbeds.wordnet import Sense, Taxonomy, parse, senses

LINE = (
    "00015388 03 n 02 animal 0 animate_being 0 002 @ 00004475 n 0000 ~ 00015568 n 0000 | a living organism "
    'characterized by voluntary movement; "the zoo has many animals"  '
)


def test_a_line() -> None:
    sense = parse(LINE, "noun")
    assert sense.key == "noun.00015388"
    assert sense.field == 3
    assert sense.words == ("animal", "animate being")
    assert sense.gloss == "a living organism characterized by voluntary movement"
    assert sense.examples == ("the zoo has many animals",)
    assert sense.parents == ("noun.00004475",)


def tree(**parents: str) -> Taxonomy:
    return Taxonomy({key: Sense(key, 0, (), "", (), tuple(above.split())) for key, above in parents.items()})


def test_similarity_by_hand() -> None:
    known = tree(root="", thing="root", animal="thing", dog="animal", cat="animal", stone="thing", alone="")
    assert known.similarity("dog", "dog") == 1.0
    assert known.similarity("dog", "cat") == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert known.similarity("dog", "animal") == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert known.similarity("dog", "stone") == pytest.approx(2 * 2 / (2 * 2 + 3))
    assert known.similarity("dog", "alone") == 0.0


def test_of_several_common_generalisations_the_one_that_counts_most() -> None:
    known = tree(root="", a="root", b="root", c="a", x="c b", y="c b")
    assert known.similarity("x", "y") == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert list(known.children["c"]) == ["x", "y"]


def test_the_real_files() -> None:
    found = senses()
    assert len(found) == 117_659
    dog = next(sense for sense in found.values() if sense.words[:1] == ("dog",))
    assert dog.gloss.startswith("a member of the genus Canis")
    assert "domestic" in dog.gloss
    nouns = {key: sense for key, sense in found.items() if key.startswith("noun.")}
    cat = next(key for key, sense in nouns.items() if sense.words[:2] == ("cat", "true cat"))
    stone = next(key for key, sense in nouns.items() if sense.words[:2] == ("rock", "stone"))
    taxonomy = Taxonomy(nouns)
    assert taxonomy.similarity(dog.key, cat) > 0.8 > taxonomy.similarity(dog.key, stone) > 0.2
