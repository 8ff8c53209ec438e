from __future__ import annotations

import pytest
import torch

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import ScoreBCE, ScoreMSE, parse_objective

LOGITS = torch.tensor([0.3, -2.0, 1.5])
COSINES = torch.tensor([0.4, -0.3, 0.9])
BATCH = {"id": torch.arange(3)}


@pytest.mark.parametrize(
    ("kind", "target"), [("clip", [0.4, 0.0, 0.9]), ("map", [0.7, 0.35, 0.95]), ("raw", [0.4, -0.3, 0.9])]
)
def test_what_becomes_of_cosines(kind: str, target: list[float]) -> None:
    found = ScoreBCE(target_range=kind)({"logits": LOGITS}, {"score": COSINES}, BATCH)
    torch.testing.assert_close(found["score_bce"], losses.soft_bce(LOGITS, torch.tensor(target)))


def test_the_default_clips_for_cross_entropy_and_leaves_squared_error_alone() -> None:
    assert ScoreBCE().target_range == "clip"
    found = ScoreMSE()({"score": LOGITS}, {"score": COSINES}, BATCH)
    torch.testing.assert_close(found["score_mse"], (LOGITS - COSINES).square().mean())


def test_a_last_axis_of_one_is_dropped_and_weights_count() -> None:
    weight = torch.tensor([1.0, 0.0, 2.0])
    found = ScoreBCE()({"logits": LOGITS[:, None]}, {"score": COSINES}, {**BATCH, "weight": weight})
    torch.testing.assert_close(found["score_bce"], losses.soft_bce(LOGITS, COSINES.clamp(0, 1), weight=weight))


def test_written_as_text() -> None:
    assert isinstance(parse_objective("score_bce(target_range='map')"), ScoreBCE)
    with pytest.raises(UserError, match="target_range"):
        ScoreMSE(target_range="cut")
