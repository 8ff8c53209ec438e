"""Word languages: episodes are what they say, held-out languages and words are held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck import testbeds
from limbeck.data.word_lists import LANGUAGES, own_words
from limbeck.language import InContext, full_context_logits
from limbeck.sources import Source
from limbeck.testbeds.word_languages import HELD_OUT


@pytest.fixture(scope="module")
def bed() -> Any:
    return testbeds.load("word_languages", "smoke")


@pytest.fixture(scope="module")
def language_of(bed: Any) -> dict[str, str]:
    return {word: language for language, words in own_words(bed.plan.words).items() for word in words}


def lines(given: InContext, row: int) -> list[list[str]]:
    text = bytes(given.context[row][given.context_mask[row]].tolist()).decode()
    return [line.split(" ") for line in text.splitlines()]


def asked(given: InContext, row: int) -> list[str]:
    return bytes(given.text[row][given.text_mask[row]].tolist()).decode().split(" ")


def test_letters_name_languages_and_the_answer_is_the_querys(bed: Any, language_of: dict[str, str]) -> None:
    split = bed.splits().test
    given = InContext.of(split.input)
    for row in range(len(split)):
        pairs = [*lines(given, row), asked(given, row)]
        assert len(pairs) == bed.plan.shots + 1
        named = {(language_of[word], letter) for word, letter in pairs}
        assert len({a for a, _ in named}) == len(named) == len({b for _, b in named})
        assert {letter for _, letter in named} <= set(map(chr, split.input["candidates"][row].tolist()))
        assert pairs[-1][1] == "ABCD"[int(split.target[row])]
        assert given.text[row][given.answer[row]].tolist() == [ord(pairs[-1][1])]


def test_held_out_languages_and_words_are_in_no_training_episode(bed: Any, language_of: dict[str, str]) -> None:
    splits, own = bed.splits(), own_words(bed.plan.words)
    fresh = {word for words in own.values() for word in words[-bed.plan.words // 5 :]}
    for part, kept in ((splits.train, False), (splits.test, True), (splits.validation, True), (bed.seen_test(), True)):
        given = InContext.of(part.input)
        words = {word for row in range(len(part)) for word, *_ in [*lines(given, row), asked(given, row)]}
        assert (words <= fresh) if kept else not (words & fresh)
        found = {language_of[word] for word in words}
        assert bool(found & set(HELD_OUT)) == (part is splits.test)
    texts = InContext.of(bed.texts().input)
    words = {word for row in range(len(texts)) for (word,) in lines(texts, row)}
    assert not words & fresh
    assert not {language_of[word] for word in words} & set(HELD_OUT)


def test_queries_about_the_same_demonstrations_stand_in_a_row(bed: Any) -> None:
    contexts = bed.splits().train.input["context"].unflatten(0, (-1, bed.plan.queries))
    assert bool((contexts == contexts[:, :1]).all())
    assert not bool((contexts[1:, 0] == contexts[:-1, 0]).all(1).any())
    texts = bed.splits().train.input["text"].unflatten(0, (-1, bed.plan.queries))
    assert len(texts[0].unique(dim=0)) == bed.plan.queries


def test_texts_go_on_behind_their_context(bed: Any) -> None:
    given = InContext.of(bed.texts().input)
    assert asked(given, 0)[0].endswith("\n")
    assert bool((given.text[given.text_mask] > 0).all())
    assert bool((given.text_mask.sum(1) - given.answer.sum(1) == 1).all())
    assert not bool(given.answer[:, 0].any())


def test_words_belong_to_one_language_alone_and_are_short() -> None:
    own = own_words(50)
    every = [word for words in own.values() for word in words]
    assert list(own) == list(LANGUAGES)
    assert len(set(every)) == len(every) == 50 * len(LANGUAGES)
    assert all(4 <= len(word.encode()) <= 7 and word.isalpha() and word == word.lower() for word in every)


def test_cached_signals_are_the_teachers_own_and_swapped_ones_another_contexts(bed: Any) -> None:
    split = bed.splits().train.subset(torch.arange(8))
    source, model = bed.signals(split), bed.teacher()
    assert isinstance(source, Source)
    batch = next(split.batches(8))
    said: Any = source(batch, ("logits", "counted"))
    with torch.no_grad():
        wanted = full_context_logits(model, batch)
    torch.testing.assert_close(said["logits"], wanted["logits"], atol=1e-2, rtol=1e-2)
    assert torch.equal(said["counted"], wanted["counted"])
    swapped: Any = bed.signals(split, swapped=True)(batch, ("logits", "counted"))
    gap = (swapped["logits"] - said["logits"]).abs().amax((1, 2))
    assert float(gap.min()) > 0, "every one of a group"
    assert torch.equal(swapped["counted"], said["counted"])


def test_a_training_that_was_killed_goes_on(bed: Any) -> None:
    from dataclasses import replace

    class Killed(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == 50:
            raise Killed

    own = testbeds.load("word_languages", "smoke")
    sizes = own.plan.reader  # type: ignore[attr-defined]
    recipe = replace(own.plan.reading, steps=60, batch_size=2, seed=7)  # type: ignore[attr-defined]
    made = []
    for log in (None, die, None):
        model = own.network(sizes, 0)  # type: ignore[attr-defined]
        try:
            made.append(own.read(model, sizes, recipe, log).state_dict())  # type: ignore[attr-defined]
        except Killed:
            continue
    assert len(made) == 2
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_the_gate_asks_about_seen_and_held_out_languages() -> None:
    bounds = testbeds.testbed_class("word_languages").regimes["plain"].bounds
    assert {"seen", "held_out", "without_examples"} <= set(bounds)
    assert all(bounds[name][0] >= 0.6 and bounds[name][1] < 1 for name in ("seen", "held_out"))
    assert testbeds.load("word_languages", "smoke").gate().passed
