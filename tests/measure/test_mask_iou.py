from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.measure.masks import mask_iou, mean_iou, prompted

EMPTY = torch.zeros(4, 4, dtype=torch.bool)
LEFT = EMPTY.clone()
LEFT[:, :2] = True
TOP = EMPTY.clone()
TOP[:2] = True


def test_iou_of_known_masks() -> None:
    found = mask_iou(torch.stack([LEFT, LEFT, EMPTY]), torch.stack([LEFT, TOP, TOP]))
    assert found.tolist() == [1.0, 4 / 12, 0.0]


def test_an_empty_reference_counts_nowhere_and_an_empty_prediction_is_wrong() -> None:
    predicted, reference = torch.stack([LEFT, LEFT, EMPTY, EMPTY]), torch.stack([LEFT, EMPTY, EMPTY, TOP])
    assert mask_iou(predicted, reference).isnan().tolist() == [False, True, True, False]
    assert mean_iou(predicted, reference) == 0.5
    assert mean_iou(predicted, reference, torch.tensor([True, True, True, False])) == 1.0
    with pytest.raises(UserError, match="none that counts"):
        mean_iou(predicted[1:3], reference[1:3])


def test_by_kind_of_prompt() -> None:
    predicted = {"box": torch.stack([LEFT, LEFT]), "point": torch.stack([TOP, TOP])}
    truth = torch.stack([LEFT, LEFT])
    assert prompted(predicted, truth, "truth") == {
        "truth": pytest.approx((1 + 1 / 3) / 2), "truth_box": 1.0, "truth_point": pytest.approx(1 / 3),
    }  # fmt: skip
    # Alignment with a teacher that is wrong is not accuracy.
    assert prompted(predicted, predicted, "alignment")["alignment"] == 1.0


def test_logits_and_other_shapes_are_refused() -> None:
    for other in (LEFT.float(), LEFT[:2]):
        with pytest.raises(UserError, match="bool"):
            mask_iou(LEFT, other)
