"""What helps a small model to learn from examples."""

from __future__ import annotations

import torch

from limbeck.testbeds.word_reading import look_up


def test_looks_are_paid_to_earlier_letters_of_the_same_class() -> None:
    # Three items, two tokens each: a space and a letter.
    spaces = torch.tensor([[1, 0, 1, 0, 1, 0]]).bool()
    letters = torch.tensor([[0, 1, 0, 1, 0, 1]]).bool()
    attention = torch.zeros(1, 1, 6, 6)
    attention[0, 0, 4] = torch.tensor([0.1, 0.6, 0.1, 0.2, 0.0, 0.0])
    classes = torch.tensor([[0, 1, 0]])
    torch.testing.assert_close(
        look_up(attention, spaces, letters, classes), -torch.tensor(0.6).log(), atol=1e-5, rtol=0
    )
    both = torch.tensor([[0, 0, 0]])
    attention[0, 0, 2, 1] = 0.5
    wanted = -(torch.tensor(0.5).log() + torch.tensor(0.8).log()) / 2
    torch.testing.assert_close(look_up(attention, spaces, letters, both), wanted, atol=1e-5, rtol=0)
