"""Gradients of several micro-batches that add up to those of the whole batch, whatever each of them holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Window:
    """The micro-batches of one optimiser step.

    A mean over a micro-batch divides by the rows that count there: tokens, for a language model. The mean of such means
    is not that of the whole batch when the micro-batches hold different numbers. Here each is weighed by its rows while
    gradients gather, and the gathered gradient is divided by all of them before the step:

        ``sum_j c_j grad m_j / sum_j c_j``, m_j the mean over the c_j rows of micro-batch j

    How many rows the later ones hold need not be known in advance, so this holds for text that is only being written
    too, and for an epoch's last, shorter window. It is exact where all terms of an objective count the same rows. Terms
    with rows of their own (a second text, spans) are weighed by the largest count: exact too as long as their counts
    stand in one proportion.
    """

    def __init__(self) -> None:
        self._first = self._rows = self._weight = torch.ones(())
        self._sums: dict[str, Tensor] = {}
        self._open = False

    def weigh(self, loss: Tensor, counts: Sequence[Tensor], pieces: int, *, whole: bool = False) -> Tensor:
        """What to take the gradient of for a micro-batch.

        Args:
            loss: of the micro-batch.
            counts: rows of its means, from :func:`~limbeck.losses.reduce.counting`; without any it weighs as much as
                every other.
            pieces: what the trainer is going to divide the loss by.
            whole: the loss is a part of a sum that is complete already: its denominator was that of the whole batch.
        """
        rows = torch.stack([count.to(loss) for count in counts]).amax() if counts else loss.new_ones(())
        if not self._open:
            # Any constant would do; this one keeps the gradient's size, which matters in half precision.
            self._first, self._rows, self._sums, self._open = rows.clamp_min(1), rows.new_zeros(()), {}, True
        if whole:
            self._first = self._rows = self._weight = loss.new_ones(())
            return loss * pieces
        self._rows = self._rows + rows
        self._weight = rows
        return loss * (rows * pieces / self._first)

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values over the micro-batches so far, with those of the one that was weighed last."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + self._weight * value
        whole = self._rows.clamp_min(1)
        return {name: total / whole for name, total in self._sums.items()}

    def close(self, parameters: Iterable[nn.Parameter]) -> None:
        """Bring the gathered gradients to the mean of all rows."""
        if self._open:
            scale = self._first / self._rows.clamp_min(1)
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale.to(parameter.grad))
        self._open = False
