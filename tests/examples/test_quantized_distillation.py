"""The example with transformers' own classes runs, and four bits are enough for it."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_transformers_classifier_in_four_bits(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/quantized-distillation.py")
    found = example.main(384, 4)
    assert found["teacher"] > 0.85
    assert found["4 bits"] > found["teacher"] - 0.1
    assert "became" in capsys.readouterr().out
