"""The example with transformers' SamModel runs, learns, and its new encoder is put in."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_transformers_sam_gets_a_smaller_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/mobilesam.py")
    first, last = example.main(24, 40)
    assert last < 0.9 * first
    assert "masks [1, 1, 1, 16, 16]" in capsys.readouterr().out
