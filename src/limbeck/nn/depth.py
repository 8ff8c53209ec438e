"""Which of a network's layers: kept in a shallower copy, or tapped at a share of the depth."""

from __future__ import annotations

from torch import nn

from limbeck.errors import UserError
from limbeck.taps import blocks

RULES = ("even", "first", "last")


def kept_layers(rule: str, count: int, depth: int) -> list[int]:
    """Numbers of the ``count`` layers that a shallower network takes of a stack of ``depth``.

    ``even`` spreads them from the first to the last (PKD-skip and DistilBERT's every other one, ends included),
    ``first`` and ``last`` take a run. Give them to :func:`~limbeck.nn.transfer.keep_layers`.
    """
    if rule not in RULES:
        raise UserError("layers", rule, RULES)
    if not 1 <= count <= depth:
        raise UserError("layers", f"{rule}:{count}", f"1 to {depth} layers")
    if rule == "first":
        return list(range(count))
    if rule == "last":
        return list(range(depth - count, depth))
    return [place * (depth - 1) // max(count - 1, 1) for place in range(count)]


def block_at(share: float, depth: int) -> int:
    """Number of the block behind which ``share`` of a stack of ``depth`` has run: 3/4 of 24 is 17, of 12 it is 8."""
    if not 0 < share <= 1:
        raise UserError("share of the depth", share, "above 0, at most 1")
    return max(round(share * depth), 1) - 1


def block_path(model: nn.Module, share: float) -> str:
    """The tap path of that block in the main stack of a network (of an autoencoder usually the encoder's)."""
    path, stack = blocks(model)
    name = list(stack._modules)[block_at(share, len(stack))]
    return f"{path}.{name}" if path else name
