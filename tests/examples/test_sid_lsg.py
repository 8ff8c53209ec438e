from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sid-lsg.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("long and short, k = 1.5: fake/denoising")
    assert "generator/adversarial" in lines[1]
    assert all(line.endswith("2 calls give [2, 4, 8, 8]") for line in lines)
