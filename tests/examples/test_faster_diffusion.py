from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "faster-diffusion.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("full sampler          50 encoder calls")
    assert " 9 encoder calls" in lines[1]
    assert "10 encoder calls" in lines[3]
    assert "with a ControlNet      9 encoder calls" in lines[4]
    assert "9 keys of 50 save" in lines[5]
