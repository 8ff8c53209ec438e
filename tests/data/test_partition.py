"""Splits: disjoint, in proportion, and a function of content and seed."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.partition import complete, content_id, partition, text_ids
from limbeck.data.split import Split
from limbeck.errors import UserError


def split_of(targets, ids=None):
    targets = torch.tensor(targets)
    ids = torch.arange(len(targets)) if ids is None else torch.tensor(ids)
    return Split(torch.arange(len(targets)).float(), targets, ids)


def test_ids_depend_on_content_alone():
    assert content_id(b"a") == content_id(b"a") != content_id(b"b")
    assert 0 <= content_id(b"a") < 2**63
    # Fixed once and for all: caches on disk are found by them.
    assert content_id(b"limbeck") == 218178847712143685
    ids = text_ids(["a", "b", "a", ("a", "bc"), ("ab", "c")]).tolist()
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4


def test_parts_are_disjoint_and_whole():
    whole = split_of([0, 1, 2] * 20)
    parts, _ = partition(whole, stratify=True, shares=(0.2, 0.1), seed=0)
    assert sorted(number for part in parts for number in part.id.tolist()) == list(range(60))
    assert [part.labels.bincount().tolist() for part in parts] == [[14] * 3, [4] * 3, [2] * 3]


def test_unbalanced_classes_keep_their_proportion():
    whole = split_of([0] * 90 + [1] * 10)
    parts, notes = partition(whole, stratify=True, shares=(0.1, 0.1), seed=0)
    assert [part.labels.bincount().tolist() for part in parts] == [[72, 8], [9, 1], [9, 1]]
    assert notes == []


def test_the_smallest_class_is_in_every_part():
    parts, _ = partition(split_of([0] * 50 + [1] * 3), stratify=True, shares=(0.1, 0.1), seed=0)
    assert all(1 in part.labels.tolist() for part in parts)


def test_one_content_is_in_one_part():
    whole = split_of([0, 1] * 30, ids=[number // 3 for number in range(60)])
    parts, notes = partition(whole, stratify=False, shares=(0.2,), seed=0)
    first, second = (set(part.id.tolist()) for part in parts)
    assert not first & second
    assert all(len(part) % 3 == 0 for part in parts)
    assert "40 samples are duplicates" in notes[0]


def test_order_of_the_samples_is_kept():
    parts, _ = partition(split_of([0] * 30), stratify=False, shares=(0.3,), seed=5)
    assert parts[0].id.tolist() == sorted(parts[0].id.tolist())


def test_missing_splits_are_cut():
    splits, notes = complete(
        {"train": split_of([0] * 10)}, stratify=False, validation_share=0.2, test_share=0.1, seed=0
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 2, 1]
    assert notes[-1] == "samples: 7 train, 2 validation, 1 test"


def test_nothing_to_train_on():
    with pytest.raises(UserError, match="data: given only test; allowed: at least training samples"):
        complete({"test": split_of([0])}, stratify=False, validation_share=0.1, test_share=0.1, seed=0)
    empty = split_of([0]).subset([])
    with pytest.raises(UserError, match="data test: given no samples"):
        complete({"train": split_of([0]), "test": empty}, stratify=False, validation_share=0.1, test_share=0.1, seed=0)
