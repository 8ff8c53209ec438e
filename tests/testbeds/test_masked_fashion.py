from __future__ import annotations

import pytest
import torch

from limbeck.testbeds import load
from limbeck.testbeds.masked_fashion import PATCHES, MaskedFashion


@pytest.fixture(scope="module")
def bed() -> MaskedFashion:
    return load("masked_fashion", "smoke")  # type: ignore[return-value]


def test_splits_are_disjoint_and_labels_come_from_the_students_pool(bed: MaskedFashion) -> None:
    splits = bed.splits()
    ids = [set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not ids[0] & ids[1]
    assert not (ids[0] | ids[1]) & ids[2]
    few, more = bed.labelled(100, 3), bed.labelled(150, 3)
    assert set(few.id.tolist()) < set(more.id.tolist()) <= ids[0]
    assert set(few.id.tolist()) != set(bed.labelled(100, 4).id.tolist())


def test_the_full_size_fits_its_data() -> None:
    full = load("masked_fashion")
    plan = full.plan  # type: ignore[attr-defined]
    assert plan.student_pool <= plan.pool <= 60000 - plan.validation
    assert plan.labels[-1] <= plan.student_pool


def test_the_teacher_is_kept_frozen_and_fills_patches_in(bed: MaskedFashion) -> None:
    teacher, split = bed.teacher(), bed.splits().validation
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    found = bed.evaluate(teacher, split)
    assert found["explained"] > bed.evaluate(bed.untrained_teacher(), split)["explained"]
    assert bed.evaluate(teacher, split) == found
    assert bed.gate().checks


def test_painting_with_the_mean_explains_nothing(bed: MaskedFashion) -> None:
    class Mean(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
            from limbeck.nn.patches import masking, patchify

            mask = masking(noise, 0.75).masked.float()
            target = patchify(pixel_values, 4)
            seen = ((1 - mask)[..., None] * target).sum((1, 2)) / ((1 - mask).sum(1) * 16)
            return {"logits": seen[:, None, None].expand_as(target), "mask": mask}

    assert bed.evaluate(Mean(), bed.splits().validation)["explained"] == pytest.approx(0, abs=1e-6)


def test_pictures_hide_what_is_hidden(bed: MaskedFashion) -> None:
    split = bed.splits().test.subset(range(3))
    whole, masked, filled = bed.reconstructions(bed.student(), split)
    # No pixel of eight bits lies exactly between black and white.
    hidden = masked.abs() < 1e-5
    assert torch.equal(masked[~hidden], whole[~hidden])
    assert torch.equal(filled[~hidden], whole[~hidden])
    assert float(hidden.float().mean()) == pytest.approx(37 / PATCHES, abs=0.02)
