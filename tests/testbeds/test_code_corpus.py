from __future__ import annotations

import re
import textwrap

import pytest

from limbeck.testbeds.code_corpus import Corpus, Function, Recipe, corpus, functions

SOURCE = textwrap.dedent('''
    import os
    os.abort()

    def documented(value: int,
                   other: int = 0) -> int:
        """Return the larger of
        two whole numbers.

        A second paragraph that no query shows.
        """
        if value > other:

            return value
        return other

    class Box:
        async def nested(self):
            """Put every single thing away."""
            first = 1
            second = 2
            return first + second

    def short(value):
        """Return the value as it was given."""
        return value

    def terse(a, b, c):
        """Add."""
        a = a + b
        a = a + c
        return a

    def example(a):
        """>>> example(one two three four five six)"""
        a = a + 1
        a = a + 2
        return a

    def undocumented(a):
        a = a + 1
        a = a + 2
        return a
''')


def test_documented_functions_are_read_and_never_run() -> None:
    found = {function.name: function for function in functions(SOURCE, "some/file.py", Recipe())}
    assert set(found) == {"documented", "nested"}
    one = found["documented"]
    assert one.doc == "Return the larger of two whole numbers."
    assert one.code == (
        "def documented(value: int,\n               other: int = 0) -> int:\n    if value > other:\n"
        "        return value\n    return other"
    )
    assert SOURCE.splitlines()[one.line - 1].startswith("def documented")
    assert found["nested"].code.startswith("async def nested(self):\n    first = 1")


def test_broken_sources_give_nothing() -> None:
    assert list(functions("def broken(:", "file.py", Recipe())) == []
    assert list(functions("\0", "file.py", Recipe())) == []


@pytest.fixture(scope="module")
def real() -> Corpus:
    return corpus()


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_sizes_and_sources(real: Corpus) -> None:
    assert (len(real.train), len(real.validation), len(real.test)) == (8000, 300, 1000)
    assert {function.file.split("/")[0] for function in real.test + real.validation} == {"stdlib"}
    assert len({function.file for function in real.test}) > 80
    assert len({function.file.split("/")[0] for function in real.train}) == 8


def test_no_training_function_leaks_into_what_is_held_out(real: Corpus) -> None:
    def marks(part: list[Function]) -> dict[str, set[str]]:
        return {
            "file": {function.file for function in part},
            "doc": {words(function.doc) for function in part},
            "code": {words(function.code) for function in part},
            "body": {words(function.code.split("\n", 1)[-1]) for function in part},
        }

    train, validation, test = (marks(part) for part in (real.train, real.validation, real.test))
    for name in train:
        assert not train[name] & test[name]
        assert not train[name] & validation[name]
        assert not validation[name] & test[name]


def test_every_query_has_one_answer(real: Corpus) -> None:
    for part in (real.test, real.validation, real.train):
        assert len({words(function.doc) for function in part}) == len(part)
        assert len({words(function.code) for function in part}) == len(part)
    for function in real.test:
        assert function.doc not in function.code


def test_the_corpus_is_the_same_every_time(
    real: Corpus, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Recipe(test=20, validation=10, train=40)
    first = corpus(small)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert corpus(small) == first
    assert real.sha256 != first.sha256
    assert corpus(small).sha256 == first.sha256
