"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_small_gpt2_reads_for_a_frozen_opt(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/mend.py")
    before, after = example.main(steps=40)
    assert after < 0.9 * before
    assert "answers" in capsys.readouterr().out
