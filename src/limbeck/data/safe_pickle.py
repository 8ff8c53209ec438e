"""Reading the tensors of a pickled PyTorch module without running anything that the file names.

A pickle may call any function it can name. Here every name is looked up in a list, and what the list gives
are inert stand-ins of our own: containers for the attributes of modules, and functions that make tensors from
the file's bytes. No class of torch, and none of the package that made the file, is ever constructed by the
pickle.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError

_DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "LongStorage": torch.int64}
_DTYPES |= {"HalfStorage": torch.float16, "IntStorage": torch.int32, "BoolStorage": torch.bool}


class ModuleRecord:
    """Stands in for a pickled ``nn.Module``: holds its attributes and can do nothing."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.attributes = dict(state)

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of this record and of those below it, under the names PyTorch gives them."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            values = self.attributes.get(group) or {}
            found |= {prefix + name: value for name, value in values.items() if isinstance(value, Tensor)}
        for name, child in (self.attributes.get("_modules") or {}).items():
            if isinstance(child, ModuleRecord):
                found |= child.state_dict(f"{prefix}{name}.")
        return found


def read_module(path: Path, admitted: Collection[str]) -> dict[str, Tensor]:
    """State of the module that ``torch.save(module, path)`` has written.

    Args:
        path: a file in PyTorch's zip format.
        admitted: full names of the module classes that the file may hold (``package.module.Class``).

    Returns:
        tensors by their names in ``state_dict()``, copied out of the file.

    Raises:
        UserError: the file is of another format, names anything else, or a tensor reaches past its bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = _Unpickler(archive, frozenset(admitted), path).load()
    except UserError:
        raise
    except Exception as error:  # a malformed pickle can fail in any way
        raise UserError("weights file", str(path), "a module saved by PyTorch in its zip format", str(error)) from error
    if not isinstance(record, ModuleRecord):
        raise UserError("weights file", str(path), "one pickled module")
    return record.state_dict()


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, admitted: frozenset[str], path: Path) -> None:
        names = archive.namelist()
        pickled = next(name for name in names if name.endswith("/data.pkl"))
        super().__init__(io.BytesIO(archive.read(pickled)))
        self._archive, self._admitted, self._path = archive, admitted, path
        self._root = pickled.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._admitted:
            return ModuleRecord
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            "__builtin__.set": set,
            "builtins.set": set,
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }
        if full not in known:
            raise UserError(f"pickle {self._path.name}", full, sorted({*known, *self._admitted}), "nothing was loaded")
        return known[full]

    def persistent_load(self, reference: Any) -> Tensor:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise UserError(f"pickle {self._path.name}", str(reference), "a tensor storage of a plain type")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype)
        if len(self._storages[key]) < count:
            raise UserError(f"pickle {self._path.name}", f"storage {key}", f"{count} numbers")
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    reach = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) + 1
    if math.prod(size) and not 0 < reach <= len(storage):
        raise UserError("pickled tensor", list(size), f"a shape within {len(storage)} numbers")
    return storage.as_strided(size, stride, offset).clone()


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor
