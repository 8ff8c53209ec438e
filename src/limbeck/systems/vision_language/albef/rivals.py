"""What could do as well as the momentum model's opinion: no opinion at all, and somebody else's."""

from __future__ import annotations

import torch
from torch import Tensor

from .method import ALBEF


class Smoothed(ALBEF):
    """Label smoothing: the share alpha goes to all keys and all words alike."""

    def softener(self, answers: Tensor) -> Tensor:
        """Similarities and logits that are all 0, whose softmax is uniform."""
        return torch.zeros_like(answers)


class Shuffled(ALBEF):
    """The momentum model's answers about another pair or another masked word: as soft, but not about this one."""

    def softener(self, answers: Tensor) -> Tensor:
        """Every row gets the row before it."""
        return answers.roll(1, dims=0)
