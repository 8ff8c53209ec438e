"""Huffman's code as an accountant: how many bits the codes of a network would take, without writing them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TypeVar

from limbeck.errors import UserError

Symbol = TypeVar("Symbol")


def code_lengths(counts: Mapping[Symbol, int]) -> dict[Symbol, int]:
    """Bits of every symbol in the best prefix code for these counts; a lone symbol needs none.

    Symbols that do not occur get no code.
    """
    if any(count < 0 for count in counts.values()):
        raise UserError("counts", min(counts.values()), "counts of at least 0")
    # The number beside a count decides ties, so that symbols are never compared.
    heap = [(count, number, [symbol]) for number, (symbol, count) in enumerate(counts.items()) if count]
    heapq.heapify(heap)
    lengths = {symbol: 0 for _, _, (symbol,) in heap}
    number = len(counts)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        merged = first[2] + second[2]
        for symbol in merged:
            lengths[symbol] += 1
        heapq.heappush(heap, (first[0] + second[0], number, merged))
        number += 1
    return lengths


def mean_bits(counts: Mapping[Symbol, int]) -> float:
    """Mean length of a symbol's code, in bits; within one bit above the entropy, and 0 for no symbols at all."""
    total = sum(counts.values())
    return sum(counts[symbol] * bits for symbol, bits in code_lengths(counts).items()) / total if total else 0.0
