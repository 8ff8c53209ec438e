"""``pt2:FILE``: networks exported by torch.export, as teachers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from limbeck.data.images import ImageFormat
from limbeck.data.tables import near_files
from limbeck.errors import LimbeckError, UserError, first_line, require
from limbeck.models.network import (
    USUAL_LENGTH,
    Network,
    Prepare,
    TensorInput,
    TextInput,
    describe_images,
    forward_for,
    image_format_of,
    next_token_targets,
    parse_options,
)  # fmt: skip
from limbeck.models.plain import read_shapes
from limbeck.signals import name_output

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

OPTIONS = ("mean", "std", "tokenizer")


class ExportedNetwork(nn.Module):
    """An exported program as a frozen network in eval mode.

    Batches larger than the program allows (often it was exported for one size) are run in pieces, and too small ones
    are filled up with copies of their first sample, which are then dropped.
    """

    def __init__(self, program: ExportedProgram, reference: str = "pt2") -> None:
        super().__init__()
        self.graph = program.module()
        self.graph.requires_grad_(False)
        self.reference = reference
        shapes = input_shapes(program)
        self.names = list(shapes)
        self.shapes = shapes
        self.least, self.most = _batch_bounds(program, shapes)
        self.training = False

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Stay in eval mode: an exported graph has no other."""
        return self

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        """Run the program on tensors in its order, or by their names."""
        inputs = self._inputs(given, named)
        count = len(inputs[0])
        parts = []
        for start in range(0, count, self.most):
            piece = [value[start : start + self.most] for value in inputs]
            size = len(piece[0])
            if size < self.least:
                piece = [torch.cat([value, value[:1].expand(self.least - size, *value.shape[1:])]) for value in piece]
            try:
                output = self.graph(*piece)
            except (AssertionError, RuntimeError) as error:
                raise LimbeckError(f"{self.reference} does not run on {_shapes(piece)}: {first_line(error)}") from error
            parts.append((output, size))
        return _joined(parts)

    def _inputs(self, given: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
        inputs = dict(zip(self.names, given)) | {name: named[name] for name in self.names if name in named}
        missing = [name for name in self.names if name not in inputs]
        if missing or len(given) > len(self.names):
            raise UserError(
                f"input of {self.reference}", ", ".join([*named] or [f"{len(given)} tensors"]), ", ".join(self.names)
            )
        for name, shape in self.shapes.items():
            here = list(inputs[name].shape)
            fits = len(here) == len(shape) and all(
                want is None or have == want for have, want in zip(here[1:], shape[1:])
            )
            if not fits:
                wanted = " x ".join("any" if size is None else str(size) for size in shape)
                raise UserError(f"input {name} of {self.reference}", " x ".join(map(str, here)), wanted)
        return [inputs[name] for name in self.names]


def read_pt2(wanted: Wanted) -> Network:
    """Open an exported program. Options: ``mean=0.5-0.5-0.5``, ``std=...`` of images; ``tokenizer=FOLDER`` of texts."""
    name, options = parse_options(wanted.rest, wanted.key, wanted.reference)
    path = Path(name).expanduser()
    if wanted.student:
        hint = "an exported graph cannot be trained on; distil into hf:, timm:, py: or small:"
        raise UserError(wanted.key, wanted.reference, "a network with trainable weights", hint)
    for option in options:
        if option not in OPTIONS:
            raise UserError(f"{wanted.key} option", option, OPTIONS)
    if not path.is_file():
        raise UserError(wanted.key, wanted.reference, near_files(path, (".pt2",)), "no such file")
    refuse_pickles(path, wanted.key)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise UserError(
            wanted.key, wanted.reference, "a file of torch.export.save that this torch reads", first_line(error)
        ) from error
    _refuse_training_graph(program, wanted)
    module = ExportedNetwork(program, wanted.reference)
    prepare, modality, notes = _preparation(module, options, wanted)
    described = describe_images(prepare) if isinstance(prepare, ImageFormat) else prepare.describe()  # type: ignore[attr-defined]
    if (module.least, module.most) != (1, _ANY):
        sizes = str(module.least) if module.least == module.most else f"{module.least} to {module.most}"
        notes.append(f"exported for batches of {sizes}: others are run in pieces")
    task = wanted.task or "classification"
    network = Network(
        module, forward_for(task), modality, task, prepare, described,
        tokenizer=getattr(prepare, "tokenizer", None), notes=notes,
    )  # fmt: skip
    network.targets = next_token_targets if task == "causal-lm" else None
    read_shapes(network, wanted)
    return network


_ANY = 1 << 30


def input_shapes(program: ExportedProgram) -> dict[str, list[int | None]]:
    """Names and shapes of the tensors that a program takes; None where a size is free."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes: dict[str, list[int | None]] = {}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if isinstance(value, Tensor):
            shapes[str(name)] = [size if isinstance(size, int) else None for size in value.shape]
    return shapes


def refuse_pickles(path: Path, key: str) -> None:
    """Look through an archive and refuse what torch would unpickle or run as compiled code while loading it.

    Raises:
        UserError: it is no archive of torch.export, or holds pickled or compiled objects.
    """
    try:
        # Torch's own reader: another one might see other entries in a file that was made to deceive it.
        archive = torch._C.PyTorchFileReader(str(path))
        reason = _unsafe(archive)
    except (RuntimeError, ValueError) as error:
        raise UserError(key, str(path), "a file of torch.export.save", first_line(error)) from error
    if reason:
        raise UserError(key, str(path), "an archive of plain tensors; no pickle is loaded", reason)


def _unsafe(archive: Any) -> str:
    names = [str(name) for name in archive.get_all_records()]
    if "archive_format" not in names:
        return "it was written by an older torch; export it again"
    for name in names:
        if "aotinductor/" in name or name.endswith((".so", ".o", ".cpp")):
            return f"it holds compiled code, {name}"
        if name.endswith("_config.json") and name.startswith(("data/weights/", "data/constants/")):
            for entry, payload in json.loads(archive.get_record(name)).get("config", {}).items():
                kind = str(payload.get("path_name", ""))
                if payload.get("use_pickle") or not kind.startswith(("weight_", "tensor_")):
                    return f"{entry} is stored as an object"
        elif name.endswith(".pt"):
            content = archive.get_record(name)
            try:
                if content:
                    torch.load(io.BytesIO(content), weights_only=True)
            except Exception:
                return f"{name} is more than tensors"
    return ""


def _batch_bounds(program: ExportedProgram, shapes: Mapping[str, Sequence[int | None]]) -> tuple[int, int]:
    """The batch sizes that a program takes."""
    sizes = {shape[0] for shape in shapes.values() if shape and shape[0] is not None}
    if sizes:
        fixed = int(min(size for size in sizes if size is not None))
        return fixed, fixed
    least, most = 1, _ANY
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if node.name in shapes and isinstance(value, Tensor) and value.dim():
            bounds = program.range_constraints.get(value.shape[0].node.expr)  # type: ignore[attr-defined]
            if bounds is not None:
                least = max(least, int(bounds.lower))
                # An upper bound of infinity is no whole number.
                most = min(most, int(bounds.upper)) if str(bounds.upper).isdigit() else most
    return least, most


def _refuse_training_graph(program: ExportedProgram, wanted: Wanted) -> None:
    for node in program.graph.nodes:
        target = str(node.target)
        drops = "aten.dropout" in target and len(node.args) > 2 and node.args[2] is True
        learns = "aten.batch_norm" in target and len(node.args) > 5 and node.args[5] is True
        if drops or learns:
            hint = f"{target.split('.')[1]} is in training mode; call .eval() before torch.export.export"
            raise UserError(wanted.key, wanted.reference, "a network exported in eval mode", hint)


def _preparation(module: ExportedNetwork, options: dict[str, str], wanted: Wanted) -> tuple[Prepare, str, list[str]]:
    shapes = list(module.shapes.values())
    if "tokenizer" in options or any(name == "input_ids" for name in module.names):
        return _texts(module, options, wanted)
    if len(shapes) != 1:
        raise UserError(
            wanted.key, f"{wanted.reference} with inputs {', '.join(module.names)}", "one tensor, or input_ids"
        )
    shape = shapes[0]
    if len(shape) != 4 or shape[1] not in (1, 3) or None in shape[1:]:
        return TensorInput(), "tensor", ["no preprocessing: it gets tensors as they are"]
    channels, high, wide = (int(size or 0) for size in shape[1:])
    size = (high, wide)
    shared = image_format_of(wanted.teacher)
    if shared is not None and "mean" not in options and (shared.channels, shared.size) == (channels, size):
        return shared, "image", ["images are prepared as for the teacher"]
    mean = _numbers(options.get("mean"), channels, 0.0, "mean", wanted)
    std = _numbers(options.get("std"), channels, 1.0, "std", wanted)
    notes = [] if "mean" in options else ["pixels are given as 0 to 1; set mean= and std= if it was trained otherwise"]
    return ImageFormat(size, size, "stretch", "bilinear", mean, std), "image", notes


def _texts(module: ExportedNetwork, options: dict[str, str], wanted: Wanted) -> tuple[Prepare, str, list[str]]:
    shape = module.shapes.get("input_ids") or next(iter(module.shapes.values()))
    if "tokenizer" not in options:
        raise UserError(wanted.key, wanted.reference, f"{wanted.reference},tokenizer=FOLDER", "it reads tokens")
    if len(shape) > 1 and shape[1] is not None:
        hint = "export it with a free sequence length (dynamic_shapes)"
        raise UserError(
            wanted.key, f"{wanted.reference} for exactly {shape[1]} tokens", "a free number of tokens", hint
        )
    transformers = require("transformers", "language")
    folder = Path(options["tokenizer"]).expanduser()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{wanted.key} tokenizer", str(folder), "a folder with tokenizer.json", first_line(error)
        ) from error
    length = wanted.max_length or min(int(tokenizer.model_max_length), USUAL_LENGTH)
    return TextInput(tokenizer, length, module.names), "text", []


def _numbers(text: str | None, channels: int, usual: float, name: str, wanted: Wanted) -> tuple[float, ...]:
    if text is None:
        return (usual,) * channels
    try:
        numbers = tuple(float(part) for part in text.split("-"))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= channels
    if len(numbers) != channels:
        raise UserError(f"{wanted.key} {name}", text, f"{channels} numbers such as 0.485-0.456-0.406")
    return numbers


def _joined(parts: Sequence[tuple[Any, int]]) -> Any:
    """The outputs of the pieces in one, without what filled a piece up."""
    first, size = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([output[:size] for output, size in parts]) if len(parts) > 1 else first[:size]
    named = [(name_output(output), size) for output, size in parts]
    return {name: torch.cat([output[name][:size] for output, size in named]) for name in named[0][0]}


def _shapes(values: Sequence[Tensor]) -> str:
    return ", ".join(f"{value.dtype} {list(value.shape)}".removeprefix("torch.") for value in values)
