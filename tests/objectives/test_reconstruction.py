from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.patches import patchify, standardise
from limbeck.objectives import MaskedReconstruction

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
ANSWER = {"logits": torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(1)), "mask": MASK}


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("given", [IMAGES, {"pixel_values": IMAGES, "noise": torch.rand(4, 4)}])
def test_the_mean_goes_over_hidden_patches(standardised: bool, given: object) -> None:
    target = patchify(IMAGES, 4)
    target = standardise(target) if standardised else target
    expected = ((ANSWER["logits"] - target).square().mean(-1) * MASK).sum() / MASK.sum()
    found = MaskedReconstruction(4, standardised=standardised)(ANSWER, {}, {"input": given})
    torch.testing.assert_close(found["reconstruction"], expected)


def test_predictions_for_seen_patches_do_not_count_and_get_no_gradient() -> None:
    logits = ANSWER["logits"].clone().requires_grad_()
    loss = MaskedReconstruction(4)({**ANSWER, "logits": logits}, {}, {"input": IMAGES})["reconstruction"]
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad[MASK == 0] == 0).all())
    assert bool((logits.grad[MASK == 1] != 0).all())


def test_a_mask_or_weight_of_images_counts_for_all_their_patches() -> None:
    counted, weight = torch.tensor([True, False, True, True]), torch.tensor([1.0, 5.0, 2.0, 0.0])
    found = MaskedReconstruction(4)(ANSWER, {}, {"input": IMAGES, "mask": counted, "weight": weight})
    rows = (ANSWER["logits"] - patchify(IMAGES, 4)).square().mean(-1)
    chosen = MASK.bool() & counted[:, None]
    expected = (rows * weight[:, None])[chosen].sum() / chosen.sum()
    torch.testing.assert_close(found["reconstruction"], expected)


def test_nothing_hidden_is_no_loss() -> None:
    found = MaskedReconstruction(4)({**ANSWER, "mask": torch.zeros(4, 4)}, {}, {"input": IMAGES})
    assert float(found["reconstruction"]) == 0


def test_other_grids_and_inputs_are_refused() -> None:
    with pytest.raises(UserError, match=r"predicted patches: given \[4, 4, 16\]"):
        MaskedReconstruction(2)(ANSWER, {}, {"input": IMAGES})
    with pytest.raises(UserError, match="pixel_values"):
        MaskedReconstruction(4)(ANSWER, {}, {"input": {"noise": IMAGES}})
