from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.tensor_file import TensorFile
from limbeck.errors import UserError

FILE = TensorFile("set of things", "things-1", "Things.save")


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    numbers = torch.arange(6).view(2, 3).T
    path = FILE.write(tmp_path / "one.safetensors", {"numbers": numbers}, {"about": "both"})
    tensors, texts = FILE.read(path)
    assert torch.equal(tensors["numbers"], numbers)
    assert texts == {"format": "things-1", "about": "both"}
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


def test_other_files_are_refused_by_what_they_should_be(tmp_path: Path) -> None:
    path = TensorFile("other", "others-1", "Others.save").write(tmp_path / "other", {"a": torch.ones(1)}, {})
    with pytest.raises(UserError, match="set of things.*a file of the format things-1"):
        FILE.read(path)
    (tmp_path / "torn").write_bytes(path.read_bytes()[:20])
    for name in ("torn", "missing"):
        with pytest.raises(UserError, match=r"a file that Things\.save wrote"):
            FILE.read(tmp_path / name)
