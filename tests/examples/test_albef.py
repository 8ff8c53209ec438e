"""The example with transformers' own classes runs and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "albef.py"


def test_a_vit_and_a_bert_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_albef", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Of twelve captions, four colours in three places: a third is all colours and no place; chance is 0.08.
    assert module.main(96, 40) > 0.25
    assert "judged again" in capsys.readouterr().out
