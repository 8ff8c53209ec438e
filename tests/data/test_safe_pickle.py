from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.data.safe_pickle import read_module
from limbeck.errors import UserError

CLASSES = [
    f"torch.nn.modules.{name}"
    for name in ("container.Sequential", "linear.Linear", "batchnorm.BatchNorm2d", "conv.Conv2d")
]


def test_tensors_of_a_pickled_module_are_those_of_its_state(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(3, 2, bias=False)))
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(2, 3, 3, 3).transpose(0, 1))
    torch.save(model, tmp_path / "model.pth")
    state = read_module(tmp_path / "model.pth", CLASSES)
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


def test_a_class_that_is_not_admitted_is_named(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.activation\.ReLU.*nothing was loaded"):
        read_module(tmp_path / "model.pth", CLASSES)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(tmp_path / "made"), protocol=2))
    with pytest.raises(UserError, match="mkdir"):
        read_module(tmp_path / "model.pth", CLASSES)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no zip file", pickle.dumps([1, 2, 3])])
def test_other_formats_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match="zip format"):
        read_module(tmp_path / "model.pth", CLASSES)


def test_a_shape_beyond_the_bytes_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 4), tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "cut.pth", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[:8] if "/data/" in name else content)
    with pytest.raises(UserError, match="storage"):
        read_module(tmp_path / "cut.pth", CLASSES)
