from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.language import Sequences, answer_logits, packed
from limbeck.systems.language.multi_granularity.identities import network, texts


# transformers' eager attention takes its softmax in float32.
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-4)])
def test_every_logit_is_what_it_is_alone(attention: str, tolerance: float) -> None:
    model, given = network().double(), texts(7)
    model.set_attn_implementation(attention)  # type: ignore[operator]
    batch = packed(given, 24, dtype=torch.float64)
    assert len(batch["target"]) < len(given), "texts share rows"
    together = answer_logits(model, batch)["logits"]
    assert together.shape[:2] == batch["target"].shape
    for number in range(len(given)):
        alone = given.select(torch.tensor([number])).trimmed()
        want = answer_logits(model, alone.batch())["logits"][alone.answer_mask]
        here = batch["mask"] & (batch["text"] == number)
        torch.testing.assert_close(together[here], want, rtol=tolerance, atol=tolerance)
        assert torch.equal(batch["target"][here], alone.answer[alone.answer_mask])


def test_rows_hold_every_text_once_and_no_more_than_they_can() -> None:
    given = texts(9)
    learnt = given.answer_mask.clone()
    learnt[1] = False
    given = Sequences.of({**given.columns(), "learnt": learnt})
    batch = packed(given, 20, pad=0)
    assert int(batch["mask"].sum()) == int(given.counted.sum())
    assert not bool(batch["mask"][batch["text"] == 1].any())
    ids, present = given.joined()
    for row, numbers in zip(batch["input"]["input_ids"], torch.nn.functional.pad(batch["text"], (1, 0), value=-2)):
        numbers[0] = numbers[1]
        for number in numbers.unique().tolist():
            if number >= 0:
                assert row[numbers == number].tolist() == ids[number][present[number]].tolist()
    with pytest.raises(UserError, match="width: given 5"):
        packed(given, 5)
