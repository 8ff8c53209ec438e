"""Export a network and prove it: written aside, compared with the original, then put in its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.export import onnx, torch_export
from limbeck.export.parity import (
    ExportError,
    ExportReport,
    Inputs,
    Parity,
    Runner,
    cases,
    compare,
    cut,
    named,
    token_inputs,
    tolerance_of,
)
from limbeck.nn.mode import evaluating
from limbeck.signals import run_network

Format = Literal["onnx", "pt2"]
FORMATS = ("onnx", "pt2")


def export(
    model: nn.Module,
    sample_inputs: Inputs,
    out: str | Path,
    to: Format = "onnx",
    *,
    outputs: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 3, 8),
    lengths: Sequence[int] | None = None,
    sequence: Literal["auto"] | None = "auto",
    tolerance: float | None = None,
    opset: int | None = None,
) -> ExportReport:
    """Export ``model`` in evaluation mode and check the file against it on real samples.

    Args:
        model: takes a tensor, or a mapping of tensors as keyword arguments; gives a tensor, a mapping or a
            tuple. It is left in the mode it was in.
        sample_inputs: real samples, as in ``batch["input"]``: not random numbers, on which wrong code often
            agrees.
        out: a file, or a folder that gets ``model.onnx`` or ``model.pt2``. A file that is there stays as it
            is until the new one has passed.
        to: ``"onnx"`` (one file; weights over 2 GiB in a second one beside it) or ``"pt2"``
            (``torch.export.load``).
        outputs: names of the outputs to keep; all tensors by default.
        batches: batch sizes to check; the first axis is free in the file.
        lengths: sequence lengths to check, at most that of the samples; by default the whole, a half and a
            quarter.
        sequence: ``"auto"`` frees axis 1 of token inputs (integer ``[B, L]``); ``None`` when their length is
            fixed.
        tolerance: bound of the largest difference over the largest value of an output; by default from the
            least precise output: 1e-4 for float32, 1e-2 for float16, 5e-2 for bfloat16, equality for
                integers.
        opset: ONNX operator set; torch's choice by default.

    Raises:
        ExportError: the network cannot be traced or translated, or the file disagrees (values, shapes, NaN)
            at any batch size or length. Then nothing new is on the disk.
        UserError: samples, format or names that do not fit.
    """
    if to not in FORMATS:
        raise UserError("to", to, FORMATS)
    size = _check_samples(sample_inputs)
    target = _target(Path(out), to)
    tokens = token_inputs(sample_inputs) if sequence == "auto" else []
    sizes = _lengths(sample_inputs, tokens, lengths)
    # Traced at a size that is not checked, so that a file tied to it cannot pass.
    traced = next(number for number in range(2, len(batches) + 3) if number not in batches)
    example = cut(sample_inputs, torch.arange(traced) % size, tokens, None)

    aside = _folder_beside(target)
    try:
        with evaluating(model):
            names = list(_signals(model, example, outputs))
            program = torch_export.trace(model, example, tokens, outputs)
            if to == "onnx":
                onnx.write(program, aside / target.name, list(named(sample_inputs)), names, tokens, opset)
                runner = onnx.load(aside / target.name)
            else:
                torch_export.write(program, aside / target.name)
                runner = torch_export.load(aside / target.name)
            checks, bound = _check(model, runner, sample_inputs, outputs, batches, tokens, sizes, tolerance)
        del runner
        written = sum(file.stat().st_size for file in aside.iterdir())
        _put(aside, target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return ExportReport(target, to, _axes(sample_inputs, tokens), names, checks, bound, written)


def _check(
    model: nn.Module,
    runner: Runner,
    samples: Inputs,
    outputs: Sequence[str] | None,
    batches: Sequence[int],
    tokens: Sequence[str],
    lengths: Sequence[int | None],
    tolerance: float | None,
) -> tuple[list[Parity], float]:
    checks = []
    bound = 0.0
    for batch, length, inputs in cases(samples, batches, tokens, lengths):
        reference = _signals(model, inputs, outputs)
        bound = tolerance_of(reference) if tolerance is None else tolerance
        try:
            exported = runner(inputs)
        except Exception as error:
            text = " ".join(str(error).split())
            where = f"at batch {batch}" + (f" and length {length}" if length is not None else "")
            raise ExportError(f"parity failed {where}: the export does not run: {text[:400]}") from error
        checks.append(compare(batch, length, reference, exported))
    worst = max(checks, key=lambda check: check.max_relative_difference)
    if worst.max_relative_difference > bound:
        where = f"batch {worst.batch}" + (f" and length {worst.length}" if worst.length is not None else "")
        raise ExportError(
            f"parity failed: the worst difference is {worst.max_abs_difference:.3g} "
            f"({worst.max_relative_difference:.3g} of the largest value, tolerance {bound:.3g}) in output "
            f"{worst.output!r} at {where}; nothing was written"
        )
    return checks, bound


def _signals(model: nn.Module, inputs: Inputs, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    with torch.no_grad():
        signals = run_network(model, {"input": inputs})
    return torch_export.select(signals, outputs)


def _check_samples(inputs: Inputs) -> int:
    tensors = named(inputs)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in tensors.values()):
        raise UserError("sample_inputs", type(inputs).__name__, "a tensor or a mapping of tensors")
    sizes = {len(tensor) for tensor in tensors.values()}
    if len(sizes) > 1 or 0 in sizes:
        raise UserError("sample_inputs", f"{sorted(sizes)} samples", "the same number, at least one, in every input")
    return sizes.pop()


def _target(out: Path, to: str) -> Path:
    if out.is_dir():
        return out / f"model.{to}"
    return out if out.suffix else out.with_suffix(f".{to}")


def _lengths(inputs: Inputs, tokens: Sequence[str], lengths: Sequence[int] | None) -> list[int | None]:
    if not tokens:
        if lengths is not None:
            raise UserError("lengths", list(lengths), "nothing, since no input is a sequence of tokens")
        return [None]
    longest = named(inputs)[tokens[0]].shape[1]
    if longest < 2:
        raise UserError("sample_inputs", f"sequences of length {longest}", "at least 2", "or pass sequence=None")
    chosen = lengths if lengths is not None else [longest, (longest + 1) // 2, max(1, longest // 4)]
    for length in chosen:
        if not 1 <= length <= longest:
            raise UserError("lengths", length, f"1 to the length of the samples, {longest}")
    return [*dict.fromkeys(chosen)]


def _axes(inputs: Inputs, tokens: Sequence[str]) -> dict[str, list[int | str]]:
    return {
        name: ["batch", "sequence", *tensor.shape[2:]] if name in tokens else ["batch", *tensor.shape[1:]]
        for name, tensor in named(inputs).items()
    }


def _folder_beside(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error}") from error


def _put(aside: Path, target: Path) -> None:
    """Move the checked files over; weights first, so that the model file never points at nothing."""
    files = sorted(aside.iterdir(), key=lambda file: file.name == target.name)
    for file in files:
        os.replace(file, target.parent / file.name)
    data = target.with_name(target.name + ".data")
    if data.name not in {file.name for file in files}:
        # Of an earlier, larger export to the same place.
        data.unlink(missing_ok=True)
