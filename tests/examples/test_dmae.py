"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_transformers_student_is_distilled_and_becomes_a_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/dmae.py")
    assert example.main(64, 3) > 0.8
    # 5 of 17 tokens through 6 of 8 blocks.
    assert "the teacher ran 22%" in capsys.readouterr().out
