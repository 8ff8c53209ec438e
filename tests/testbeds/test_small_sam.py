from __future__ import annotations

import pytest
import torch

from limbeck.cache import StaleCache
from limbeck.sources import Cached
from limbeck.testbeds import load
from limbeck.testbeds.prompting import embeddings
from limbeck.testbeds.small_sam import SmallSAM, asked_for


@pytest.fixture(scope="module")
def bed() -> SmallSAM:
    return load("small_sam", "smoke")  # type: ignore[return-value]


def test_no_scene_is_in_two_parts(bed: SmallSAM) -> None:
    splits = bed.splits()
    parts = [splits.train, splits.validation, splits.test, bed.teacher_samples()]
    ids = [number for part in parts for number in part.id.tolist()]
    assert len(ids) == len(set(ids))
    assert parts[0].labels.shape == (64, 5, 32, 32)


def test_the_teacher_is_kept_frozen_and_better_than_a_blind_one(bed: SmallSAM) -> None:
    teacher, again = bed.teacher(), bed.teacher()
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), again.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    test = bed.splits().test
    seeing = bed.evaluate(teacher, test)["truth"]
    again.image_encoder = bed.student()
    assert seeing > 0.1 + bed.evaluate(again, test)["truth"]


def test_embeddings_are_stored_in_half_precision_and_belong_to_this_teacher(bed: SmallSAM) -> None:
    stored, train = bed.embeddings(), bed.splits().train
    some = train.subset([5, 3])
    live = embeddings(bed.teacher().image_encoder, torch.as_tensor(some.input))
    found = torch.as_tensor(stored({"id": some.id})["embedding"])
    torch.testing.assert_close(found, live, rtol=1e-3, atol=1e-3)
    assert not torch.equal(found, live)
    for part in ("teacher", "preprocessing", "data"):
        with pytest.raises(StaleCache, match=part):
            Cached(stored.folder, expect={part: "another"})


def test_the_same_objects_are_asked_for_by_everybody(bed: SmallSAM) -> None:
    test = bed.splits().test
    counted = asked_for(test)
    assert bool(counted.any())
    assert int(test.labels[counted].flatten(1).sum(1).min()) >= 12
    kept, fresh = bed.teacher_answers(), bed.answers(bed.teacher(), test)
    assert all(torch.equal(kept[kind], fresh[kind]) for kind in fresh)


def test_student_and_teacher_give_embeddings_of_one_shape(bed: SmallSAM) -> None:
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert bed.student(0)(images).shape == bed.teacher().image_encoder(images).shape == (1, 48, 8, 8)
    first, same, other = bed.student(0), bed.student(0), bed.student(1)
    assert torch.equal(first.state_dict()["neck.0.weight"], same.state_dict()["neck.0.weight"])
    assert not torch.equal(first.state_dict()["neck.0.weight"], other.state_dict()["neck.0.weight"])
    assert bed.gate().passed
