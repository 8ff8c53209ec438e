"""ONNX: a traced network as one ``.onnx`` file with named axes, run back by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from limbeck.errors import require
from limbeck.export.parity import ExportError, Inputs, Runner, named
from limbeck.export.torch_export import quiet

EXTRA = "export"
# A protobuf message ends at 2 GiB; weights beyond that go to a file beside it.
LARGEST_SINGLE_FILE = 2**31 - 2**24


def write(
    program: ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    tokens: Collection[str],
    opset: int | None = None,
) -> None:
    """Translate a traced program and save it as ``path``; weights over 2 GiB go to ``path`` + ``.data``."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, EXTRA)
    weights = [tensor for tensor in program.state_dict.values() if isinstance(tensor, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    with quiet():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                opset_version=opset,
            )
        except Exception as error:
            text = " ".join(str(error.__cause__ or error).split())
            raise ExportError(f"torch.onnx cannot translate the network: {text[:600]}") from error
        if translated is None:
            raise ExportError("torch.onnx gave no program")
        _name_outputs(translated.model, outputs)
        _name_axes(translated.model, tokens)
        translated.save(str(path), external_data=size > LARGEST_SINGLE_FILE)


def load(path: Path) -> Runner:
    """A function from inputs to named outputs that runs the file at ``path`` on the CPU."""
    runtime = require("onnxruntime", EXTRA)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot open the export: {str(error)[:600]}") from error
    wanted = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, Tensor]:
        feed = {name: value.detach().cpu().numpy() for name, value in named(inputs).items() if name in wanted}
        return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, feed), strict=True)}

    return run


def _name_outputs(model: Any, names: Sequence[str]) -> None:
    """Give the outputs their names, also where an inner value has one of them or two outputs are one value.

    torch.onnx's own ``output_names`` does neither: an output called ``embedding`` meets the lookup of that
    name.
    """
    ir = require("onnx_ir", EXTRA)
    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value in graph.outputs[:index] or value.is_graph_input() or value.is_initializer():
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].dtype = value.shape, value.dtype
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
    final = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if id(value) not in final and value.name in names:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _name_axes(model: Any, tokens: Collection[str]) -> None:
    """Call free axes ``batch`` and ``sequence`` everywhere, instead of the tracer's s72 and s53."""
    ir = require("onnx_ir", EXTRA)
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, dimension in enumerate(value.shape):
            if isinstance(dimension, ir.SymbolicDim) and dimension.value is not None:
                sequence = axis == 1 and value.name in tokens
                names.setdefault(str(dimension.value), "sequence" if sequence else "batch")
    for value in (*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_rename(dimension, names, ir) for dimension in value.shape])


def _rename(dimension: Any, names: Mapping[str, str], ir: Any) -> Any:
    if not isinstance(dimension, ir.SymbolicDim) or dimension.value is None:
        return dimension
    text = re.sub(r"\b\w+\b", lambda match: names.get(match[0], match[0]), str(dimension.value))
    return ir.SymbolicDim(text)
