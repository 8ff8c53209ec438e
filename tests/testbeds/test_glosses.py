from __future__ import annotations

import pytest

from limbeck import testbeds
from limbeck.language import Sequences
from limbeck.testbeds.glosses import FIELDS, pair_of
from limbeck.testbeds.wordnet import Sense


def sense(key: str, word: str, gloss: str, *parents: str, field: int = 6) -> Sense:
    return Sense(key, field, (word, "another"), gloss, (), parents)


def test_an_answer_is_the_field_and_two_more_general_words() -> None:
    known = {
        "noun.1": sense("noun.1", "flagon", "A large metal vessel, with a handle", "noun.2"),
        "noun.2": sense("noun.2", "Vessel", "an object used as a container", "noun.3", "noun.1"),
        "noun.3": sense("noun.3", "container", "any object that can hold things"),
        "verb.4": sense("verb.4", "pour", "cause to run in a stream", "verb.4"),
        "noun.5": sense("noun.5", "flask", "a vessel", "noun.2"),
    }
    assert pair_of(known["noun.1"], known) == (
        "a large metal vessel , with a handle", "artifact: vessel: container"
    )  # fmt: skip
    # Nothing twice above it, nothing above it, no noun, too short.
    assert [pair_of(known[key], known) for key in ("noun.2", "noun.3", "verb.4", "noun.5")] == [None] * 4


def test_pairs_are_of_different_glosses_and_real_fields() -> None:
    bed = testbeds.load("glosses", "smoke")
    parts = bed.pairs  # type: ignore[attr-defined]
    glosses = {name: {gloss for gloss, _ in pairs} for name, pairs in parts.items()}
    assert {name: len(pairs) for name, pairs in glosses.items()} == {"test": 40, "validation": 40, "train": 400}
    assert not glosses["train"] & (glosses["test"] | glosses["validation"])
    assert {answer.split(": ")[0] for pairs in parts.values() for _, answer in pairs} <= set(FIELDS)


@pytest.mark.slow
def test_prompts_and_answers_are_of_like_length() -> None:
    whole = Sequences.of(testbeds.load("glosses").splits().test.input)  # type: ignore[arg-type]
    lengths = [mask.sum(1).double().mean() for mask in (whole.prompt_mask, whole.answer_mask)]
    assert lengths[0] < 2.5 * lengths[1]
