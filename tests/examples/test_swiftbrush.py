from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "swiftbrush.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 steps; terms generator/vsd")
    assert lines[1] == "teacher moved by 0, fake score by something"
    assert lines[2].startswith("one call gives latents of shape [2, 4, 8, 8]")
