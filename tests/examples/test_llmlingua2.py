"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llmlingua2.py"


def test_a_tiny_xlm_roberta_learns_what_a_chat_model_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_llmlingua2", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, after = module.main(160, 3)
    assert after > before + 0.2
    printed = capsys.readouterr().out
    assert "answers trusted" in printed
    assert "?" in printed, "a forced word"
