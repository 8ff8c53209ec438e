"""The example with timm's ResNet and a folder in the manner of MVTec AD runs."""

from __future__ import annotations

import pytest

from tests.scripts import load_script


def test_a_timm_resnet_and_a_folder_give_maps_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("examples/fabric-rd.py")
    assert 0.0 <= example.main(epochs=2, good=12) <= 1.0
    assert "kinds good, broken" in capsys.readouterr().out
