"""The example with transformers' own classes runs, and four bits are enough for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "quantized-distillation.py"


def test_a_transformers_classifier_in_four_bits(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_quantized_distillation", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(384, 4)
    assert found["teacher"] > 0.85
    assert found["4 bits"] > found["teacher"] - 0.1
    assert "became" in capsys.readouterr().out
