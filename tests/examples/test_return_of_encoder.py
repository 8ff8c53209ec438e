"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "return-of-encoder.py"


def test_a_t5_student_learns_from_a_llama_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_return_of_encoder", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, after = module.main(60, 30, 3)
    assert after < 0.9 * before
    assert "nats" in capsys.readouterr().out
