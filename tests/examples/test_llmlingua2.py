"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_tiny_xlm_roberta_learns_what_a_chat_model_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/llmlingua2.py")
    before, after = example.main(160, 3)
    assert after > before + 0.2
    printed = capsys.readouterr().out
    assert "answers trusted" in printed
    assert "?" in printed, "a forced word"
