"""Texts to be compressed: parts, what is kept, and what the judges say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.word_spans import split_spans
from limbeck.errors import UserError
from limbeck.testbeds import described_texts, load
from limbeck.testbeds.described_texts import described
from limbeck.testbeds.prompt_texts import PromptTexts, label_f1

SOURCE = '''
def f():
    """Say what it is.

    {body}
    """
    return 1
'''
BODY = "The function looks at every :class:`Thing` of the *list* and " + "adds a word to what is there " * 6 + "."


@pytest.fixture(scope="module")
def bed() -> PromptTexts:
    return load("prompt_texts", "smoke")  # type: ignore[return-value]


def test_the_second_paragraph_is_the_text_and_the_first_its_summary() -> None:
    (one,) = described(SOURCE.format(body=BODY), "f.py")
    assert one.summary == "Say what it is."
    assert one.text.startswith("The function looks at every Thing of the")
    assert list(described(SOURCE.format(body="Parameters\n    " + BODY), "f.py")) == [], "a heading"
    assert list(described(SOURCE.format(body="Too short."), "f.py")) == []
    assert list(described("def f(:", "f.py")) == []


def test_no_text_twice_and_few_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    many = [described_texts.Described(f"text {number % 30}", f"summary {number}", "one file") for number in range(60)]
    kept = described_texts._kept("test", {"a": 1}, lambda: iter(many))
    assert len(kept) == described_texts.PER_FILE
    assert len({one.text for one in kept}) == len(kept)


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_no_source_file_is_in_two_parts(size: str) -> None:
    bed = PromptTexts(size=size)  # type: ignore[arg-type]
    files = {
        name: {bed.corpus[place].file for place in bed.part(name).id.tolist()}
        for name in ("gallery", "validation", "pool", "other_gallery")
    }
    names = list(files)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            assert not files[name] & files[other], (name, other)
    pool = set(bed.part("pool").id.tolist())
    assert set(bed.part("train").id.tolist()) <= pool
    assert bed.part("test").id.tolist() == bed.part("gallery").id.tolist()[: len(bed.part("test"))]
    limits = described_texts.WORDS
    assert all(limits[0] <= len(split_spans(text)) <= limits[1] for text in bed.part("pool").input)  # type: ignore[arg-type]


def test_the_whole_text_is_understood_and_found(bed: PromptTexts) -> None:
    """At rate 0.5 of a text said twice, its first half says everything."""
    test, other = bed.part("test"), bed.part("other")
    anyhow = [-torch.arange(float(len(split_spans(text)))) for text in test.input]  # type: ignore[arg-type]
    others = [-torch.arange(float(len(split_spans(text)))) for text in other.input]  # type: ignore[arg-type]
    found = bed.judge(anyhow, others)
    assert found["meaning_50"] > found["meaning_33"] > found["meaning_20"] > 0.2
    assert found["recall_50"] == found["bm25_50"] == 1.0
    assert bed.judge(anyhow, others) == found
    best = bed.judge(bed.saliency(test), bed.saliency(other))
    assert best["meaning_20"] > found["meaning_20"], "the teacher beats the first words"


def test_saliency_and_information_are_kept_by_text(bed: PromptTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    test = bed.part("test")
    first = bed.saliency(test)
    monkeypatch.setattr(PromptTexts, "teacher", lambda self: pytest.fail("asked twice"))
    again = bed.saliency(test)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    for row, text in zip(bed.information(test), test.input):  # type: ignore[arg-type]
        assert len(row) == len(split_spans(text))
        assert bool((row >= 0).all())


def test_label_f1_keeps_as_many_as_the_labels() -> None:
    labels = [[True, False, True, False], [False, True]]
    assert label_f1([torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0])], labels) == 1.0
    assert label_f1([torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1.0, 0.0])], labels) == pytest.approx(1 / 3)
    assert label_f1([torch.zeros(2)], [[False, False]]) == 0.0


def test_gate_evaluation_and_errors(bed: PromptTexts) -> None:
    assert bed.gate().passed
    assert {check.name for check in bed.gate().checks} >= {"teacher_over_random", "variation_rate"}
    assert "teacher_over_random" not in {check.name for check in PromptTexts("summaries", "smoke").gate().checks}
    student = bed.student(0)
    assert set(bed.evaluate(student, bed.part("validation"))) == {"meaning_50", "meaning_33", "meaning_20"}
    one, same, other = (bed.student(seed).classifier.classifier.weight for seed in (0, 0, 1))  # type: ignore[union-attr]
    assert torch.equal(one, same)  # type: ignore[arg-type]
    assert not torch.equal(one, other)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="part"):
        bed.part("train set")
    with pytest.raises(UserError, match="model"):
        bed.evaluate(torch.nn.Linear(1, 1), bed.part("validation"))
