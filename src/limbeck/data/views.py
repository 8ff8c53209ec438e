"""Replayable randomness: numbers that are a pure function of (seed, epoch, sample id).

A counter-based generator (the finaliser of SplitMix64) instead of a stateful one: any process can draw the
view of any sample again, in any order, alone or in a batch, and gets the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; as signed
# int64.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mix(values: Tensor) -> Tensor:
    """Scramble int64 ``values`` elementwise; one to one, and close inputs give unrelated outputs."""
    values = values + _STEP
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def epoch_seed(seed: int, epoch: int) -> int:
    """One non-negative seed for an epoch of a run."""
    scrambled = mix(mix(torch.tensor(seed, dtype=torch.int64)) + epoch)
    return int(scrambled) & (2**63 - 1)


def view_seeds(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """The view (augmentation) seed of every sample, int64 of the shape of ``ids``."""
    return mix(mix(ids) ^ epoch_seed(seed, epoch))


def numbered_views(ids: Tensor, number: Tensor | int) -> Tensor:
    """The seed of every sample's ``number``-th view, whatever the run: the key of a cache of several views."""
    return mix(mix(ids) ^ torch.as_tensor(number, dtype=torch.int64, device=ids.device))


def view_numbers(seed: int, epoch: int, ids: Tensor, views: int) -> Tensor:
    """Which of its ``views`` every sample shows in an epoch: all of them once in ``views`` epochs, in turn."""
    return (integers(mix(ids) ^ epoch_seed(seed, 0), 0, views) + epoch) % views


def uniform(view: Tensor, draw: int | Tensor) -> Tensor:
    """The ``draw``-th uniform number in [0, 1) of every view, float64; ``view`` and ``draw`` broadcast."""
    scrambled = mix(mix(view) + draw)
    return _shift(scrambled, 11).double() * 2.0**-53


def integers(view: Tensor, draw: int, high: int) -> Tensor:
    """The ``draw``-th uniform whole number in [0, high) of every view."""
    return (uniform(view, draw) * high).long()


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) shift to the right of int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
