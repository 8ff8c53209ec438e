"""The example with networks of timm and transformers runs on an image folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ncfm.py"


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_folder_becomes_a_few_images(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_ncfm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.main(kind, 20, 9)
    assert len(made) == 16
    assert made.bytes == 4 * 3 * 32 * 32 + 1 + 4
    assert "became 16 pictures" in capsys.readouterr().out
