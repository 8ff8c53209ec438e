"""Negatives drawn in proportion to how much they look like positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError


class Negatives(NamedTuple):
    """``column`` ``[B]``: the column drawn for every row; ``found`` bool ``[B]``: False where no column is a negative
    (``column`` is then the row's own number and must not be used)."""

    column: Tensor
    found: Tensor


@torch.no_grad()
def draw_negatives(
    scores: Tensor,
    ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    *,
    uniform: bool = False,
    generator: torch.Generator | None = None,
) -> Negatives:
    """One negative column for every row, drawn with probability ``softmax(scores)`` over what is a negative.

    The harder a negative, the likelier: ALBEF's sampler for image-text matching, whose scores are the contrastive
    similarities over their temperature.

    Args:
        scores: ``[B, C]``. ids: ``[B]`` of the rows, by default their number. column_ids: ``[C]``, by default ``ids``.
            A column with the row's id (its own pair, a duplicate caption) is never drawn.
        uniform: draw every negative with equal probability: the rival of hard negatives.
        generator: of the draws; torch's own by default.

    What is no negative is left out before the softmax. Weights that are set to zero after it, as in the released code,
    may leave a row without any weight when a duplicate holds all of it, and then ``multinomial`` fails.
    """
    if scores.dim() != 2:
        raise UserError("scores", list(scores.shape), "[B, C]")
    rows = torch.arange(len(scores), device=scores.device) if ids is None else ids
    columns = (
        (rows if ids is not None else torch.arange(scores.shape[1], device=scores.device))
        if column_ids is None
        else column_ids
    )
    if rows.shape != scores.shape[:1] or columns.shape != scores.shape[1:]:
        raise UserError(
            "ids", f"{list(rows.shape)} and {list(columns.shape)}", f"one per row and column of {list(scores.shape)}"
        )
    negative = rows[:, None] != columns[None]
    found = negative.any(1)
    precise = torch.zeros_like(scores) if uniform else scores
    logits = precise.float().masked_fill(~negative, -torch.inf)
    # A row without negatives draws from anything: the draw is thrown away.
    weights = logits.masked_fill(~found[:, None], 0.0).softmax(1)
    drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
    own = torch.arange(len(scores), device=scores.device)
    return Negatives(torch.where(found, drawn, own), found)
