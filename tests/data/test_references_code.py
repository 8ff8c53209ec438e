"""``py:`` data: what a user's function may return."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.data.references import load_data
from limbeck.errors import UserError

CODE = """
import torch
from limbeck.data import Split, Splits
from limbeck.data.references import DataSet

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20) % 2

def pair(): return {"train": (X, Y)}
def mapping(): return {"train": {"input": X, "target": Y, "id": torch.arange(20)}, "test": (X + 100, Y)}
def floats(): return {"train": (X, (Y / 3).double())}
def texts(): return {"train": ([f"text {n}" for n in range(20)], Y)}
def pixels(): return {"train": (torch.randint(0, 255, (20, 3, 4, 4), dtype=torch.uint8), Y)}
def bare(): return {"train": {"input": X}}
def named(): return {"train": {"input": {"a": X, "b": X + 1}, "target": Y}}
def splits(): return Splits(*(Split(X, Y, torch.arange(20) + start) for start in (0, 20, 40)))
def whole(): return DataSet(splits(), "tensor", "classification", num_classes=2)
def negative(): return {"train": (X, Y - 1)}
def wrong(): return [1, 2]
def odd(): return {"train": (X, Y), "extra": (X, Y)}
def lonely(): return {"train": 3}
def short(): return {"train": (X, Y[:3])}
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_data", None)


def load(name, **options):
    return load_data(f"py:own_data:{name}", allow_py=True, **options)


def test_code_runs_only_with_the_flag():
    with pytest.raises(UserError, match=r"data: given py:own_data:pair; allowed: .*--allow-py"):
        load_data("py:own_data:pair")


@pytest.mark.parametrize(
    ("name", "modality", "task", "classes"),
    [
        ("pair", "tensor", "classification", 2),
        ("mapping", "tensor", "classification", 2),
        ("floats", "tensor", "regression", None),
        ("texts", "text", "classification", 2),
        ("pixels", "image", "classification", 2),
        ("bare", "tensor", "embedding", None),
        ("named", "tensor", "classification", 2),
        ("splits", "tensor", "classification", 2),
        ("whole", "tensor", "classification", 2),
    ],
)
def test_what_may_be_returned(name, modality, task, classes):
    data = load(name)
    assert (data.modality, data.task, data.num_classes) == (modality, task, classes)
    sizes = [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)]
    assert sizes == {"mapping": [18, 2, 20], "splits": [20] * 3, "whole": [20] * 3}.get(name, [16, 2, 2])


def test_ids_are_given_or_made_from_the_content():
    assert set(load("mapping").splits.train.id.tolist()) < set(range(20))
    one, two = load("pair"), load("pair", seed=0)
    assert torch.equal(one.splits.train.id, two.splits.train.id)
    assert len(set(one.splits.train.id.tolist())) == 16
    assert load("floats").splits.train.labels.dtype == torch.float32


def test_task_can_be_asked_for():
    data = load("whole", task="embedding")
    assert (data.task, data.task_reason) == ("embedding", "asked for")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrong", {}, r"data py:own_data:wrong returned: given list; allowed: a DataSet, Splits, or a mapping"),
        ("odd", {}, "data split: given extra; allowed: train, validation, test"),
        ("lonely", {}, "data train: given int; allowed: a Split"),
        ("short", {}, "split target: given 3 rows"),
        ("negative", {}, "data train targets: given -1; allowed: 0 to 0"),
        ("pair", {"labels": ["only"]}, "data train targets: given 1; allowed: 0 to 0"),
        ("bare", {"task": "classification"}, "data train: given no targets|a labelled split"),
        ("floats", {"task": "classification"}, "data train targets: given torch.float32; allowed: whole class numbers"),
        ("missing", {}, "given missing; allowed: .*"),
    ],
)
def test_wrong_returns(name, options, message):
    with pytest.raises(UserError, match=message):
        load(name, **options)
