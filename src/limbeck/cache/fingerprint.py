"""Content hashes of what decides a teacher's answers: weights, structure, tokenizer, preprocessing, data.

Every fingerprint is a SHA-256 in hexadecimal. It depends on content alone: not on the device, the order of
insertion, the process, the folder or the name that something was loaded from.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from limbeck.errors import UserError

# Attributes that change with use or with the machine and leave the answers (beyond rounding) as they are.
VOLATILE = frozenset(
    {
        "training", "gradient_checkpointing", "fused_attn", "max_seq_len_cached", "device", "name_or_path",
        "transformers_version", "dtype", "torch_dtype", "architectures", "supports_gradient_checkpointing",
    }
)  # fmt: skip
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprint_module(module: nn.Module) -> str:
    """Hash of a network's weights, persistent buffers and structure.

    Structure means: the class of every submodule, what it prints of itself (strides, epsilons, rates), its
    plain public attributes (number of heads, activation function), the order inside ``Sequential`` and a
    ``config``. Left out: device, train or eval mode, ``requires_grad``, buffers that are not saved (they grow
    with use), compile and data-parallel wrappers. The source code of ``forward`` is not read.

    Raises:
        UserError: a tensor has no content (meta device).
    """
    module = unwrap(module)
    structure = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if not _is_wrapper(part):
            structure[path.replace("_orig_mod.", "").removesuffix("_orig_mod").rstrip(".")] = _describe(part)
    tensors, extras = {}, {}
    for name, value in module.state_dict().items():
        name = name.replace("_orig_mod.", "")
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None:
            extras[name] = _canonical(value, name, strict=False)
    return fingerprint_text("module", structure, fingerprint_tensors(tensors), extras)


def fingerprint_settings(*parts: nn.Module) -> str:
    """Hash of what modules are set to: the class and plain public attributes of each; no weights, no submodules."""
    return fingerprint_text("settings", [_describe(part) for part in parts])


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors: names, dtypes, shapes and bytes."""
    known: dict[tuple[Any, ...], str] = {}
    rows = []
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        # Tied weights have several names and one content; hash it once.
        place = None if tensor.layout != torch.strided or tensor.is_meta else (
            tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(),
        )  # fmt: skip
        if place is None or place not in known:
            digest = _tensor_digest(tensor, name)
            if place is None:
                rows.append([name, digest])
                continue
            known[place] = digest
        rows.append([name, known[place]])
    return fingerprint_text("tensors", rows)


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Hash of what a tokenizer does: vocabulary, merges, normalisation, special tokens, chat template.

    Accepts tokenizers of transformers (fast and slow), a ``tokenizers.Tokenizer`` and a plain mapping of
    tokens to numbers. Padding and truncation are left out, since calls change them; put the lengths into the
    preprocessing.
    """
    if isinstance(tokenizer, Mapping):
        return fingerprint_text("vocabulary", dict(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    content: dict[str, Any] = {}
    if hasattr(backend, "to_str"):
        content["pipeline"] = {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")
        }
    elif hasattr(tokenizer, "get_vocab"):
        content["class"] = type(tokenizer).__qualname__
        content["vocabulary"] = dict(tokenizer.get_vocab())
    else:
        raise UserError(
            "tokenizer",
            type(tokenizer).__name__,
            "a tokenizer of transformers or tokenizers, or a mapping of tokens",
        )
    for name in ("special_tokens_map", "chat_template"):
        if getattr(tokenizer, name, None):
            content[name] = getattr(tokenizer, name)
    return fingerprint_text("tokenizer", _canonical(content, "tokenizer", strict=False))


def fingerprint_text(*parts: object) -> str:
    """Hash of a description: any nest of plain values, mappings, lists, sets, tensors, arrays and
    dataclasses.

    Mappings and sets count without their order; a tuple counts as a list.

    Raises:
        UserError: a part has no content to hash (a function, a path, an open object); the key says where it
            is.
    """
    text = json.dumps(_canonical(list(parts), "description", strict=True), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(**parts: Any) -> dict[str, str]:
    """A cache's whole fingerprint, each part hashed by its kind.

    ``fingerprint_of(teacher=network, tokenizer=tokenizer, preprocessing={"size": 224}, data=path)``:
    networks, tokenizers and files by content, sources by their own fingerprint, anything else as a
    description. Parts that are None are left out.
    """
    return {name: _fingerprint_any(name, part) for name, part in parts.items() if part is not None}


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside compile and data-parallel wrappers."""
    while _is_wrapper(module):
        module = getattr(module, "_orig_mod", None) or module.get_submodule("module")
    return module


def _is_wrapper(module: nn.Module) -> bool:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return isinstance(module, parallel) or hasattr(module, "_orig_mod")


def _fingerprint_any(name: str, part: Any) -> str:
    if isinstance(part, nn.Module):
        return fingerprint_module(part)
    if isinstance(part, Path):
        return fingerprint_file(part)
    if hasattr(part, "backend_tokenizer") or hasattr(part, "get_vocab"):
        return fingerprint_tokenizer(part)
    if callable(getattr(part, "fingerprint", None)):
        return str(part.fingerprint())
    return fingerprint_text(name, part)


def _describe(module: nn.Module) -> list[Any]:
    plain = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in VOLATILE:
            continue
        described = _plain(value)
        if described is not None:
            plain[name] = described
    description: list[Any] = [type(module).__qualname__, _ADDRESS.sub("", module.extra_repr()), plain]
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        description.append([name for name, _ in module.named_children()])
    if isinstance(module, torch.fx.GraphModule):
        description.append(module.code)
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        description.append(_canonical(_steady(config.to_dict()), "config", strict=False))
    return description


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float, str)) for item in value):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(value, "settings", strict=False)
    # Functions and classes count by name without their module, which is __main__ for some and not for others.
    if not isinstance(value, nn.Module) and callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return None


def _steady(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _steady(v) for k, v in value.items() if k not in VOLATILE and not str(k).startswith("_")}
    return value


def _canonical(value: Any, path: str, *, strict: bool) -> Any:
    """A JSON value that is equal for equal contents only."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, Mapping):
        pairs = [
            [_canonical(key, path, strict=strict), _canonical(item, f"{path}.{key}", strict=strict)]
            for key, item in value.items()
        ]
        return {"map": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{path}[{index}]", strict=strict) for index, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return {"set": sorted((_canonical(item, path, strict=strict) for item in value), key=json.dumps)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, numpy.generic):
        return _canonical(value.item(), path, strict=strict)
    if isinstance(value, numpy.ndarray):
        numeric = value.dtype.kind in "biufc"
        content = torch.from_numpy(numpy.ascontiguousarray(value)) if numeric else value.tolist()
        return _canonical(content, path, strict=strict)
    if isinstance(value, Tensor):
        return {"tensor": _tensor_digest(value.detach(), path)}
    if isinstance(value, enum.Enum):
        return _canonical(value.value, path, strict=strict)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {type(value).__qualname__: _canonical(fields, path, strict=strict)}
    if not strict:
        return {"type": type(value).__qualname__}
    raise UserError(
        path,
        type(value).__name__,
        "plain values, mappings, lists, sets, bytes, tensors, arrays and dataclasses",
        "describe a function by its name and settings, a file by fingerprint_file",
    )


def _tensor_digest(tensor: Tensor, name: str) -> str:
    if tensor.is_meta:
        raise UserError(f"tensor {name}", "on the meta device", "a tensor with content", "load the weights first")
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    dense = dense.dequantize() if dense.is_quantized else dense
    data = dense.cpu().resolve_conj().resolve_neg().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
