"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "dmae.py"


def test_a_transformers_student_is_distilled_and_becomes_a_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_dmae", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(64, 3) > 0.8
    # 5 of 17 tokens through 6 of 8 blocks.
    assert "the teacher ran 22%" in capsys.readouterr().out
