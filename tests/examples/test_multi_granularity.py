"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "multi-granularity.py"


def test_a_gpt2_student_learns_from_a_llama_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_multi_granularity", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, after = module.main(150, 30, 3)
    assert after > before + 0.1
    assert "corrected" in capsys.readouterr().out
