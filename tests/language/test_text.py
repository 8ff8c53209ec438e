from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.language import Decoding, Mixed, OnPolicy, Replayed, Revised, Step, parse_text, writes
from limbeck.language.text import FORMS
from limbeck.schedules import Linear
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts

DECODING = Decoding(4, END, PAD)


def test_every_form_is_a_writer() -> None:
    writers = [parse_text(form, DECODING) for form in FORMS]
    assert [writes(writer) for writer in writers] == [False] * 3 + [True] * (len(FORMS) - 3)
    by = parse_text("mix(student=linear(0, 1), by=corrected(rounds=2))", DECODING)
    assert isinstance(by, Mixed)
    assert by.share == Linear(0, 1)
    assert isinstance(by.writer, Revised)
    assert by.writer.reviser.rounds == 2
    replay = parse_text("replay(capacity=7, share=0.5)", DECODING)
    assert isinstance(replay, Replayed)
    assert replay.buffer.capacity == 7
    assert isinstance(replay.writer, OnPolicy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teachers", "name: given teachers; allowed: data, teacher, student, mix"),
        ("mix(0.5, of=1)", r"text mix: .*student: float"),
        ("mix(student=2)", "share: given 2"),
        ("linear(0, 1)", "text: given linear"),
        ("data + student", "text: given data"),
        ("mix(by=data)", "text by: given DataText"),
        ("import os", "text: given import os"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_text(text, DECODING)


def test_a_mixture_writes_its_share_of_the_steps() -> None:
    model, given = network(), texts(2)
    writer = Mixed(OnPolicy(DECODING), Linear(0.0, 1.0))
    counts = []
    for progress in (0.0, 0.5, 1.0):
        written = 0
        for seed in range(40):
            views = torch.tensor([seed, seed + 1000])
            made = writer(Step(model, None, given, views, torch.arange(2), progress))
            written += made is not given
            assert float(writer.observed()["text_new"]) == float(made is not given)
        counts.append(written)
    assert counts[0] == 0
    assert counts[2] == 40
    assert 8 < counts[1] < 32
