"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_gpt2_student_learns_from_a_llama_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/multi-granularity.py")
    before, after = example.main(150, 30, 3)
    assert after > before + 0.1
    assert "corrected" in capsys.readouterr().out
