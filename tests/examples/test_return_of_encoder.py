"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_t5_student_learns_from_a_llama_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/return-of-encoder.py")
    before, after = example.main(60, 30, 3)
    assert after < 0.9 * before
    assert "nats" in capsys.readouterr().out
