"""The example with timm's ResNet and a folder in the manner of MVTec AD runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fabric-rd.py"


def test_a_timm_resnet_and_a_folder_give_maps_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_fabric_rd", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert 0.0 <= module.main(epochs=2, good=12) <= 1.0
    assert "kinds good, broken" in capsys.readouterr().out
