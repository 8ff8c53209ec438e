from __future__ import annotations

import pytest

from tests.scripts import run_script


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_script("examples/sid-lsg.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("long and short, k = 1.5: fake/denoising")
    assert "generator/adversarial" in lines[1]
    assert all(line.endswith("2 calls give [2, 4, 8, 8]") for line in lines)
