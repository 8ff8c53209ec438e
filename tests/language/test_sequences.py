"""The one place that shifts: which logits predict which token, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import Sequences, answer_logits, left_aligned, positions
from limbeck.language.sequences import chosen_place
from limbeck.losses import cross_entropy, forward_kl
from limbeck.systems.language.multi_granularity.identities import TOKENS, Copier, network, texts


class Echo(nn.Module):
    """The logits of position i name the token at position i; a model without ``logits_to_keep``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        return {"logits": 50.0 * nn.functional.one_hot(input_ids, TOKENS).float()}


def test_logits_stand_one_place_before_the_token_they_predict() -> None:
    given = Sequences.pad([[5, 6], [7]], [[8, 9], [10]], pad=0)
    named = answer_logits(Echo(), given.batch())["logits"].argmax(-1)
    # The last token of the prompt predicts the first of the answer.
    assert named.tolist() == [[6, 8], [7, 10]]


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shift_by_one_costs_dearly(shift: int) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    batch = Sequences.pad(prompts, prompts, pad=0).batch()

    def loss(distance: int) -> float:
        logits = answer_logits(Copier(distance), batch)["logits"]
        return float(cross_entropy(logits, batch["target"], mask=batch["mask"]))

    assert loss(4) < 1e-6
    assert loss(4 + shift) > 10


def test_padding_sides_and_batch_mates_change_nothing() -> None:
    student, teacher, given = network(), network(1), texts()
    wide = Sequences(
        nn.functional.pad(given.prompt, (5, 0)), nn.functional.pad(given.prompt_mask, (5, 0)),
        nn.functional.pad(given.answer, (0, 4)), nn.functional.pad(given.answer_mask, (0, 4)),
    )  # fmt: skip

    def loss_and_gradient(one: Sequences, **options: Any) -> tuple[Tensor, Tensor]:
        student.zero_grad()
        batch = one.batch()
        theirs = answer_logits(teacher, batch)["logits"].detach()
        value = forward_kl(answer_logits(student, batch)["logits"], theirs, mask=batch["mask"], **options)
        value.backward()  # type: ignore[no-untyped-call]
        weights: Any = student.get_parameter("model.embed_tokens.weight")
        return value.detach(), weights.grad.clone()

    value, gradient = loss_and_gradient(given)
    for other in (wide, wide.trimmed()):
        found = loss_and_gradient(other)
        torch.testing.assert_close(found[0], value)
        torch.testing.assert_close(found[1], gradient, atol=1e-6, rtol=1e-4)
    # Row by row with one denominator is the batch.
    pieces = [
        loss_and_gradient(given.select(torch.tensor([row])).trimmed(), denominator=given.counted.sum())
        for row in range(len(given))
    ]
    torch.testing.assert_close(torch.stack([piece[0] for piece in pieces]).sum(), value)
    torch.testing.assert_close(torch.stack([piece[1] for piece in pieces]).sum(0), gradient, atol=1e-6, rtol=1e-4)


def test_turns_of_somebody_else_are_read_and_not_learnt() -> None:
    given = texts()
    learnt = given.answer_mask.clone()
    learnt[:, 1] = False
    turned = Sequences(given.prompt, given.prompt_mask, given.answer, given.answer_mask, learnt)
    assert (turned.batch()["mask"] == (given.answer_mask & learnt)).all()
    assert (turned.batch()["input"]["attention_mask"] == given.batch()["input"]["attention_mask"]).all()
    again = Sequences.of(turned.columns())
    assert torch.equal(again.counted, turned.counted)
    assert turned.select(torch.tensor([0])).learnt is not None


def test_a_row_without_an_answer_is_harmless() -> None:
    given = Sequences.pad([[3, 4], [5, 6]], [[7], []], pad=0)
    student, batch = network(), given.batch()
    logits = answer_logits(student, batch)["logits"]
    value = cross_entropy(logits[1:], batch["target"][1:], mask=batch["mask"][1:])
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0.0
    assert all(bool((weight.grad == 0).all()) for weight in student.parameters() if weight.grad is not None)


def test_moving_tokens() -> None:
    ids = torch.tensor([[1, 0, 2, 0, 3], [0, 0, 4, 5, 0]])
    moved, mask = left_aligned(ids, ids > 0)
    assert moved.tolist() == [[1, 2, 3], [0, 4, 5]]
    assert mask.tolist() == [[True, True, True], [False, True, True]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 1]]
    joined = Sequences.pad([[1, 2], [3]], [[4], [5, 6]], pad=0).as_prompts()
    assert joined.prompt.tolist() == [[1, 2, 4], [3, 5, 6]]
    assert joined.answer.shape == (2, 0)


def test_chosen_places_are_true_ones_and_even() -> None:
    mask = torch.tensor([[False, True, True, False, True]]).expand(3000, 5)
    place = chosen_place(mask, view_seeds(0, 0, torch.arange(3000)), 3)
    share = torch.bincount(place, minlength=5) / 3000
    assert share[0] == share[3] == 0
    assert (share[[1, 2, 4]] - 1 / 3).abs().max() < 0.04
    assert chosen_place(torch.zeros(1, 4, dtype=torch.bool), torch.tensor([1]), 0).tolist() == [0]


def test_refuses_what_is_padded_on_the_wrong_side() -> None:
    ids = torch.tensor([[1, 2, 0]])
    empty = ids[:, :0]
    with pytest.raises(UserError, match="left"):
        Sequences(ids, ids > 0, empty, empty.bool())
    with pytest.raises(UserError, match="bool"):
        Sequences(ids, ids, empty, empty.bool())
    with pytest.raises(UserError, match="prompt_mask"):
        Sequences.of({"prompt": ids})
