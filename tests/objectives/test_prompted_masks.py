from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import PromptedMasks, total
from limbeck.objectives.masks import best_mask


def signals(seed: int = 0, *, boxes: int = 1) -> dict[str, Tensor]:
    """Two images, three prompts, of which the first ones are boxes."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([[True, False, False, False] if place < boxes else [False, True, True, True]
                            for place in range(3)]).expand(2, 3, 4)  # fmt: skip
    return {
        "masks": torch.randn(2, 3, 4, 6, 6, generator=generator, dtype=torch.float64),
        "iou": torch.rand(2, 3, 4, generator=generator, dtype=torch.float64),
        "candidates": allowed,
    }


TRUTH = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9)) > 0


def test_the_best_candidate_is_corrected_and_every_guess() -> None:
    student = signals()
    found = PromptedMasks()(student, {}, {"target": TRUTH, "id": torch.arange(2)})
    focal, dice, wrong = [], [], []
    for image in range(2):
        for prompt in range(3):
            costs = {}
            for place in student["candidates"][image, prompt].nonzero()[:, 0].tolist():
                mask, truth = student["masks"][image, prompt, place][None], TRUTH[image, prompt][None]
                f, d = 20 * losses.mask_focal(mask, truth), losses.mask_dice(mask, truth)
                g = losses.iou_regression(student["iou"][image, prompt, place][None], mask, truth)
                costs[float(f + d)] = (f, d)
                wrong.append(g / student["candidates"][image, prompt].sum())
            focal.append(costs[min(costs)][0])
            dice.append(costs[min(costs)][1])
    for name, values in {"focal": focal, "dice": dice, "iou": wrong}.items():
        torch.testing.assert_close(found[name], torch.stack(values).sum() / 6)


def test_only_one_mask_of_a_prompt_gets_a_gradient() -> None:
    student = signals()
    masks = student["masks"].clone().requires_grad_(True)
    terms = PromptedMasks(iou=0.0)({**student, "masks": masks}, {}, {"target": TRUTH, "id": torch.arange(2)})
    total(terms).backward()
    assert masks.grad is not None
    touched = masks.grad.flatten(3).abs().amax(-1) > 0
    assert touched.sum(-1).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert bool((touched <= student["candidates"]).all())


def test_the_teachers_target_is_the_mask_it_would_answer() -> None:
    student, teacher = signals(), signals(5)
    answer = best_mask(teacher)
    assert torch.equal(answer[:, 0], teacher["masks"][:, 0, 0]), "a box is answered by the first mask"
    ours = PromptedMasks("teacher")(student, teacher, {"id": torch.arange(2)})
    same = PromptedMasks()(student, {}, {"target": answer > 0, "id": torch.arange(2)})
    torch.testing.assert_close(ours, same)


def test_masked_prompts_leave_the_mean() -> None:
    student = signals()
    rows = torch.tensor([[True, False, True], [True, True, False]])
    broken = {**student, "masks": torch.where(rows[..., None, None, None], student["masks"], torch.nan)}
    found = PromptedMasks()(broken, {}, {"target": TRUTH, "mask": rows, "id": torch.arange(2)})
    kept = {name: value[rows][:, None] for name, value in student.items()}
    alone = PromptedMasks()(kept, {}, {"target": TRUTH[rows][:, None], "id": torch.arange(4)})
    torch.testing.assert_close(found, alone)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match="target"):
        PromptedMasks("student")
