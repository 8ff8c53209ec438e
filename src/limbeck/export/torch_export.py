"""torch.export: a network traced with free batch and sequence axes, saved as one ``.pt2`` file."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from limbeck.errors import UserError
from limbeck.export.parity import BARE, ExportError, Inputs, Runner, named
from limbeck.nn.mode import plain_attention
from limbeck.signals import name_output

LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch._export",
    "torch._dynamo",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
)


def trace(
    network: nn.Module, inputs: Inputs, tokens: Collection[str], outputs: Sequence[str] | None
) -> ExportedProgram:
    """The graph of ``network`` on ``inputs``, with axis 0 and axis 1 of ``tokens`` free.

    The program takes the names of ``inputs`` as keyword arguments (or the one tensor) and returns what the
    network
    does: a tensor, or a dictionary of its tensors, of which ``outputs`` picks some.
    """
    free = torch.export.Dim.DYNAMIC
    tensors = named(inputs)
    axes = {name: {0: free, 1: free} if name in tokens else {0: free} for name in tensors}
    wrapped = _adapter(list(tensors))(network, isinstance(inputs, Mapping), outputs)
    with quiet(), plain_attention(), torch.no_grad():
        try:
            return torch.export.export(wrapped, (), dict(tensors), dynamic_shapes=axes, strict=False)
        except UserError:
            raise
        except Exception as error:
            hint = "; if the length is fixed, pass sequence=None" if tokens else ""
            raise ExportError(f"torch.export cannot trace the network: {_first_lines(error)}{hint}") from error


def write(program: ExportedProgram, path: Path) -> None:
    """Save a traced program as ``path``."""
    with quiet():
        try:
            torch.export.save(program, path)
        except RuntimeError as error:  # A full disk, in torch's words.
            raise ExportError(f"cannot write {path}: {_first_lines(error)}") from error


def load(path: Path) -> Runner:
    """A function from inputs to named outputs that runs the file at ``path``."""
    with quiet():
        network = torch.export.load(path).module()

    def run(inputs: Inputs) -> dict[str, Tensor]:
        with torch.no_grad():
            return name_output(network(**named(inputs)))

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporters; what matters comes back as an exception."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _adapter(names: Sequence[str]) -> type[nn.Module]:
    """A module class whose forward has exactly these argument names, as torch.export asks for."""

    class Adapter(nn.Module):
        def __init__(self, network: nn.Module, keywords: bool, outputs: Sequence[str] | None) -> None:
            super().__init__()
            self.network, self.keywords, self.outputs = network, keywords, outputs

        def forward(self, **inputs: Tensor) -> Any:
            output = self.network(**inputs) if self.keywords else self.network(inputs[BARE])
            return output if isinstance(output, Tensor) else select(name_output(output), self.outputs)

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, positional) for name in ("self", *names)]
    Adapter.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Adapter


def select(signals: dict[str, Tensor], outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """The named outputs, all by default."""
    for name in outputs or ():
        if name not in signals:
            raise UserError("outputs", name, signals)
    return signals if outputs is None else {name: signals[name] for name in outputs}


def _first_lines(error: Exception, limit: int = 600) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__
