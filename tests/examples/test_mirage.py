"""The example with torch-geometric's own classes runs and learns."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_torch_geometric_network_learns_from_the_distilled_set(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/mirage.py")
    assert example.main(80, 40) > 0.8
    assert "became" in capsys.readouterr().out
