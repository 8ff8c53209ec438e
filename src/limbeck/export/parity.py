"""Parity: does an exported network say what the original says, on real samples of several shapes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, UserError

Inputs = Tensor | Mapping[str, Tensor]
Runner = Callable[[Inputs], dict[str, Tensor]]

BARE = "input"
# Differences are judged against the largest value of an output, but never against less than this.
SMALLEST_SCALE = 1e-3
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ExportError(LimbeckError):
    """The network cannot be exported, or its export says something else; nothing was left on the disk."""


@dataclass(frozen=True)
class Parity:
    """One check: the worst output of one batch.

    ``max_relative_difference`` is the largest difference over the largest value of that output (at least
    0.001), and infinite where integers differ.
    """

    batch: int
    length: int | None
    output: str
    max_abs_difference: float
    max_relative_difference: float


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far from the original; ``tolerance`` bounds the relative differences."""

    path: Path
    format: str
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    parity: list[Parity]
    tolerance: float
    bytes: int

    @property
    def worst(self) -> Parity:
        """The check with the largest relative difference."""
        return max(self.parity, key=lambda check: check.max_relative_difference)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "parity": [vars(check) for check in self.parity],
            "max_abs_difference": max(check.max_abs_difference for check in self.parity),
            "max_relative_difference": self.worst.max_relative_difference,
            "tolerance": self.tolerance,
            "bytes": self.bytes,
        }


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Inputs by name; a bare tensor is called ``input``."""
    return dict(inputs) if isinstance(inputs, Mapping) else {BARE: inputs}


def unnamed(tensors: Mapping[str, Tensor], like: Inputs) -> Inputs:
    """The inverse of :func:`named`, for inputs built ``like`` these."""
    return tensors if isinstance(like, Mapping) else tensors[BARE]


def token_inputs(inputs: Inputs) -> list[str]:
    """Names of the inputs whose axis 1 is a sequence: integer or boolean ``[B, L]`` of one length ``L``.

    In a mapping ``input_ids`` sets the length when there; a lone integer tensor ``[B, L]`` counts as tokens
    too.
    """
    found = {
        name: tensor.shape[1]
        for name, tensor in named(inputs).items()
        if tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex()
    }
    length = found.get("input_ids", next(iter(found.values()), None))
    return [name for name, size in found.items() if size == length]


def cut(inputs: Inputs, rows: Tensor, tokens: Sequence[str], length: int | None) -> Inputs:
    """Chosen rows, with sequences cut to ``length`` at the end where padding is."""
    tensors = named(inputs)
    mask = tensors.get("attention_mask")
    left = mask is not None and bool((mask[:, 0] == 0).any()) and bool((mask[:, -1] != 0).all())
    chosen = {}
    for name, tensor in tensors.items():
        piece = tensor[rows.to(tensor.device)]
        if length is not None and name in tokens:
            piece = piece[:, -length:] if left else piece[:, :length]
        chosen[name] = piece.contiguous()
    return unnamed(chosen, inputs)


def cases(
    inputs: Inputs, batches: Sequence[int], tokens: Sequence[str], lengths: Sequence[int | None]
) -> Iterator[tuple[int, int | None, Inputs]]:
    """Real batches of every size and length: samples in turn, repeated where there are too few.

    Where a batch of several rows has no padding, the attention of every second row ends half-way, so that an
    export which lost its mask is found.
    """
    size = len(next(iter(named(inputs).values())))
    begin = 0
    for length in lengths:
        for batch in batches:
            rows = (torch.arange(batch) + begin) % size
            begin += batch
            piece = cut(inputs, rows, tokens, length)
            if isinstance(piece, Mapping) and "attention_mask" in tokens:
                mask = piece["attention_mask"]
                if bool((mask != 0).all()) and mask.shape[1] > 1:
                    mask = mask.clone()
                    mask[1::2, (mask.shape[1] + 1) // 2 :] = 0
                    piece = {**piece, "attention_mask": mask}
            yield batch, length, piece


def compare(batch: int, length: int | None, reference: Mapping[str, Tensor], exported: Mapping[str, Tensor]) -> Parity:
    """The worst output of one batch; a missing one, another shape or NaN raises :class:`ExportError`."""
    where = f"at batch {batch}" + (f" and length {length}" if length is not None else "")
    worst: Parity | None = None
    for name, wanted in reference.items():
        if name not in exported:
            raise ExportError(f"parity failed {where}: the export has no output {name!r}")
        given = exported[name].to(wanted.device)
        if given.shape != wanted.shape:
            raise ExportError(
                f"parity failed {where}: output {name!r} has shape {list(given.shape)}, the network gives "
                f"{list(wanted.shape)}; the export is tied to one batch size or length"
            )
        for side, tensor in (("network", wanted), ("export", given)):
            if tensor.is_floating_point() and tensor.isnan().any():
                raise ExportError(f"parity failed {where}: output {name!r} of the {side} holds NaN")
        difference, scale = _difference(given.double(), wanted.double())
        relative = difference / max(scale, SMALLEST_SCALE)
        if difference > 0 and not wanted.is_floating_point():
            relative = math.inf
        check = Parity(batch, length, name, difference, relative)
        if worst is None or check.max_relative_difference > worst.max_relative_difference:
            worst = check
    if worst is None:
        raise UserError("network output", "no tensors", "at least one tensor")
    return worst


def tolerance_of(outputs: Mapping[str, Tensor]) -> float:
    """The default tolerance: that of the least precise output."""
    return max((TOLERANCES.get(tensor.dtype, 0.0) for tensor in outputs.values()), default=0.0)


def _difference(given: Tensor, wanted: Tensor) -> tuple[float, float]:
    # Equal infinities (a masked logit) are no difference, and no scale either.
    same = given == wanted
    gap = torch.where(same, 0.0, (given - wanted).abs())
    finite = torch.where(wanted.isfinite(), wanted.abs(), 0.0)
    return (float(gap.max()), float(finite.max())) if gap.numel() else (0.0, 0.0)
