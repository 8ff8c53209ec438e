"""Several texts in one row: no padding is computed, and no text sees another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.language.sequences import Sequences


def packed(texts: Sequences, width: int, *, pad: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A batch of the same texts in rows of ``width`` tokens, each text in the first row that has room for it.

    Positions begin anew with every text and attention stays inside it (a block-diagonal causal mask), so every logit is
    what it would be for the text alone. Losses have the same rows as for ``texts.batch()``: the tokens that count.

    Args:
        width: tokens of a row.
        pad: filler behind a row's last text.
        dtype: of the mask that is added to attention scores: that of the network.

    Returns:
        ``input`` with ``input_ids``, ``position_ids`` ``[R, width]`` and ``attention_mask`` ``[R, 1, width, width]``,
        which transformers' decoders take; ``target`` and ``mask`` ``[R, width - 1]`` for
        :func:`~limbeck.language.answer_logits`; ``text`` ``[R, width - 1]``, the number of the text that every target
        belongs to, -1 for filler. A row is several samples: signals cached by sample do not fit it.

    Raises:
        UserError: a text that is longer than a row.
    """
    ids, present = texts.joined()
    counted = torch.cat([torch.zeros_like(texts.prompt_mask), texts.counted], 1)
    lengths = present.sum(1).tolist()
    if lengths and max(lengths) > width:
        raise UserError("width", width, f"at least the longest text's {max(lengths)} tokens")
    rows = _rows(lengths, width)
    shape = (len(rows), width)
    tokens = torch.full(shape, pad, dtype=ids.dtype, device=ids.device)
    number = torch.full(shape, -1, dtype=torch.int64, device=ids.device)
    place = torch.zeros(shape, dtype=torch.int64, device=ids.device)
    learnt = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    for row, members in enumerate(rows):
        start = 0
        for text in members:
            where = slice(start, start + lengths[text])
            tokens[row, where] = ids[text][present[text]]
            learnt[row, where] = counted[text][present[text]]
            number[row, where] = text
            place[row, where] = torch.arange(lengths[text], device=ids.device)
            start += lengths[text]
    given = {"input_ids": tokens, "position_ids": place, "attention_mask": _blocks(number, dtype)}
    # A text's first token follows the end of another text: nobody predicts it.
    follows = number[:, 1:] == number[:, :-1]
    return {"input": given, "target": tokens[:, 1:], "mask": learnt[:, 1:] & follows, "text": number[:, 1:]}


def _rows(lengths: list[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for text, length in enumerate(lengths):
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(text)
        room[row] -= length
    return rows


def _blocks(number: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 for earlier tokens of one text, else the least number of the dtype. (Filler
    sees filler, so that no softmax is empty.)"""
    width = number.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=number.device).tril()
    seen = (number[:, :, None] == number[:, None, :]) & causal
    blocks = torch.zeros(seen.shape, dtype=dtype, device=number.device)
    return blocks.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
