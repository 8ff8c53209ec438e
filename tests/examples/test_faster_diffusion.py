from __future__ import annotations

import pytest

from tests.scripts import run_script


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_script("examples/faster-diffusion.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("full sampler          50 encoder calls")
    assert " 9 encoder calls" in lines[1]
    assert "10 encoder calls" in lines[3]
    assert "with a ControlNet      9 encoder calls" in lines[4]
    assert "9 keys of 50 save" in lines[5]
