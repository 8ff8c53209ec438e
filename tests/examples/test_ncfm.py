"""The example with networks of timm and transformers runs on an image folder."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_folder_becomes_a_few_images(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/ncfm.py")
    made = example.main(kind, 20, 9)
    assert len(made) == 16
    assert made.bytes == 4 * 3 * 32 * 32 + 1 + 4
    assert "became 16 pictures" in capsys.readouterr().out
