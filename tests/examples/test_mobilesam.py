"""The example with transformers' SamModel runs, learns, and its new encoder is put in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mobilesam.py"


def test_a_transformers_sam_gets_a_smaller_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_mobilesam", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, last = module.main(24, 40)
    assert last < 0.9 * first
    assert "masks [1, 1, 1, 16, 16]" in capsys.readouterr().out
