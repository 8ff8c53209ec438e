"""References in general: schemes, keys, tasks."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.errors import MissingExtra, UserError
from limbeck.models.network import TensorInput, parse_options
from limbeck.models.references import load_network


@pytest.mark.parametrize("reference", ["", "resnet18", "hfx:bert", "hf:", "https://example.org/model"])
def test_unknown_scheme_lists_the_schemes(reference):
    with pytest.raises(UserError, match=r"^student: .*hf:NAME_OR_FOLDER.*timm:NAME.*pt2:FILE.*py:.*small:.*slice:"):
        load_network(reference, key="student")


def test_teacher_is_not_offered_what_makes_students():
    with pytest.raises(UserError, match="slice: makes students") as error:
        load_network("slice:layers=0")
    assert "width:" not in str(error.value)


def test_bare_folder_is_recognised(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="for this folder write hf:"):
        load_network(str(tmp_path))


def test_unknown_task_and_length():
    with pytest.raises(UserError, match=r"task: given segmentation; allowed: classification, regression"):
        load_network("hf:x", task="segmentation")
    with pytest.raises(UserError, match="max_length: given 0"):
        load_network("hf:x", max_length=0)


def test_options_may_hold_commas():
    assert parse_options("layers=0,2,5,width=3", "student", "x") == ("", {"layers": "0,2,5", "width": "3"})
    assert parse_options("resnet18,img_size=64", "student", "x") == ("resnet18", {"img_size": "64"})
    with pytest.raises(UserError, match="'64' has no ="):
        parse_options("resnet18,64", "student", "timm:resnet18,64")


def test_tensor_input_scales_pixels_and_refuses_texts():
    prepare = TensorInput()
    assert prepare(torch.full((1, 2), 255, dtype=torch.uint8)).tolist() == [[1.0, 1.0]]
    assert prepare([torch.ones(2), torch.zeros(2)]).shape == (2, 2)
    with pytest.raises(UserError, match="texts or paths"):
        prepare(["a text"])


@pytest.mark.parametrize(
    ("reference", "package", "extra"), [("hf:.", "transformers", "language"), ("timm:resnet18", "timm", "vision")]
)
def test_missing_libraries_name_their_extra(monkeypatch, reference, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package} is needed here.*limbeck\[{extra}\]"):
        load_network(reference)
