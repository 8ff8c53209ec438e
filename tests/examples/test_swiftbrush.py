from __future__ import annotations

import pytest

from tests.scripts import run_script


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_script("examples/swiftbrush.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 steps; terms generator/vsd")
    assert lines[1] == "teacher moved by 0, fake score by something"
    assert lines[2].startswith("one call gives latents of shape [2, 4, 8, 8]")
