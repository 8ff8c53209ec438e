"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_vit_and_a_bert_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/albef.py")
    # Of twelve captions, four colours in three places: a third is all colours and no place; chance is 0.08.
    assert example.main(96, 40) > 0.25
    assert "judged again" in capsys.readouterr().out
