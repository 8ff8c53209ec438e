"""A quantised network as a file: codes packed bit by bit, points and scales, and everything that was not quantised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.tensor_file import TensorFile
from limbeck.errors import UserError
from limbeck.quantization.huffman import mean_bits
from limbeck.quantization.quantisers import Coded, uniform_points
from limbeck.quantization.scaling import Scaled, Scaling
from limbeck.quantization.views import QuantisedView

_FILE = TensorFile("quantised network", "limbeck-quantised-1", "PackedNetwork.save")
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Whole numbers below ``2^width`` in ``width`` bits each, one after the other: uint8 ``[ceil(n width / 8)]``."""
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < 2**width:
        raise UserError("codes", f"{int(codes.min())} to {int(codes.max())}", f"0 to {2**width - 1} ({width} bits)")
    numbers = codes.cpu().numpy()[:, None] >> np.arange(width)
    return torch.from_numpy(np.packbits((numbers & 1).astype(np.uint8).reshape(-1), bitorder="little"))


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` numbers that :func:`pack_bits` was given, int64."""
    bits = np.unpackbits(packed.cpu().numpy(), count=count * width, bitorder="little").reshape(count, width)
    return torch.from_numpy((bits.astype(np.int64) << np.arange(width)).sum(axis=1))


@dataclass(frozen=True)
class SizeReport:
    """What a quantised network weighs.

    Attributes:
        weights: numbers that are quantised.
        others: numbers that are not (skipped weights, BatchNorm statistics).
        full_bytes: of everything as it was before.
        code_bytes, scale_bytes, point_bytes, other_bytes: of the parts of the file.
        huffman_bits: mean length of a code if all codes of the network shared one Huffman table.
    """

    weights: int
    others: int
    full_bytes: int
    code_bytes: int
    scale_bytes: int
    point_bytes: int
    other_bytes: int
    huffman_bits: float

    @property
    def bytes(self) -> int:
        """Of all parts together."""
        return self.code_bytes + self.scale_bytes + self.point_bytes + self.other_bytes

    @property
    def huffman_bytes(self) -> float:
        """Of all parts, with Huffman's code in the place of codes of one width (its table not counted)."""
        return self.bytes - self.code_bytes + self.huffman_bits * self.weights / 8

    @property
    def compression(self) -> float:
        """How many times smaller than before."""
        return self.full_bytes / self.bytes

    @property
    def overhead_bits(self) -> float:
        """Bits per quantised weight that scales and points add to its code."""
        return 8 * (self.scale_bytes + self.point_bytes) / self.weights if self.weights else 0.0


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """All that a quantised network needs, as it is stored. Make one with :meth:`of`, before the view is written.

    Attributes:
        coded: quantised parameters by name.
        others: parameters and buffers that are stored as they are.
        about: texts that travel along.
    """

    coded: Mapping[str, Coded]
    others: Mapping[str, Tensor]
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, view: QuantisedView, about: Mapping[str, str] | None = None) -> PackedNetwork:
        """Pack ``model`` as ``view`` shows it; the model keeps its own weights."""
        coded = {name: _on_cpu(value) for name, value in view.code(model).items()}
        stored = {name: value.detach().cpu().clone() for name, value in _tensors(model).items() if name not in coded}
        return cls(coded, stored, dict(about or {}))

    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by its name in the network, dequantised."""
        return {**{name: value.decode() for name, value in self.coded.items()}, **self.others}

    @torch.no_grad()
    def write(self, model: nn.Module) -> nn.Module:
        """Give a network of the same architecture the stored weights; it comes back in eval mode.

        Raises:
            UserError: its tensors have other names or shapes.
        """
        own, stored = _tensors(model), self.tensors()
        for name in {**own, **stored}:
            given, wanted = (list(side[name].shape) if name in side else "missing" for side in (own, stored))
            if given != wanted:
                raise UserError(f"tensor {name} of the network", given, f"{wanted}, as packed")
        for name, value in stored.items():
            own[name].copy_(value)
        return model.eval()

    def size(self) -> SizeReport:
        """What it weighs; the file's header, which names the tensors, is not counted."""
        counts: dict[int, int] = {}
        for value in self.coded.values():
            for code, count in zip(*(side.tolist() for side in value.codes.unique(return_counts=True)), strict=True):
                counts[code] = counts.get(code, 0) + count
        parts = {name: _entries(value) for name, value in self.coded.items()}

        def weigh(*kinds: str) -> int:
            return sum(_bytes(entry) for part in parts.values() for kind, entry in part.items() if kind in kinds)

        weights = sum(value.scaled.count for value in self.coded.values())
        others = sum(_bytes(value) for value in self.others.values())
        full = sum(value.scaled.count * value.dtype.itemsize for value in self.coded.values()) + others
        return SizeReport(
            weights,
            sum(value.numel() for value in self.others.values()),
            full,
            weigh("codes"),
            weigh("scale", "offset"),
            weigh("points"),
            others,
            mean_bits(counts),
        )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; the old one stays until the new one is whole."""
        content = {f"other/{name}": value for name, value in self.others.items()}
        for name, value in self.coded.items():
            content |= {f"{kind}/{name}": entry for kind, entry in _entries(value).items()}
        texts = {
            "coded": json.dumps({name: _header(value) for name, value in self.coded.items()}, sort_keys=True),
            "about": json.dumps(dict(self.about), sort_keys=True),
        }
        return _FILE.write(path, content, texts)

    @classmethod
    def load(cls, path: str | Path) -> PackedNetwork:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: no file, or not a quantised network.
        """
        content, texts = _FILE.read(path)
        coded = {name: _coded(name, about, content) for name, about in json.loads(texts["coded"]).items()}
        others = {name.removeprefix("other/"): value for name, value in content.items() if name.startswith("other/")}
        return cls(coded, others, json.loads(texts["about"]))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, a tied one under its first."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def _width(points: int) -> int:
    return max((points - 1).bit_length(), 1)


def _entries(value: Coded) -> dict[str, Tensor]:
    entries = {"codes": pack_bits(value.codes, _width(len(value.points))), "scale": value.scaled.scale.flatten()}
    if value.scaled.offset is not None:
        entries["offset"] = value.scaled.offset.flatten()
    return {**entries, "points": value.points} if value.learned else entries


def _header(value: Coded) -> dict[str, Any]:
    return {
        "shape": list(value.scaled.shape),
        "points": len(value.points),
        "dtype": str(value.dtype).removeprefix("torch."),
        "scaling": value.scaling.kind,
        "bucket_size": value.scaling.bucket_size,
    }


def _coded(name: str, about: Mapping[str, Any], content: Mapping[str, Tensor]) -> Coded:
    shape, scaling = torch.Size(about["shape"]), Scaling(about["scaling"], about["bucket_size"])
    scale, offset, learned = (content.get(f"{kind}/{name}") for kind in ("scale", "offset", "points"))
    if scale is None or f"codes/{name}" not in content:
        raise UserError(f"quantised weight {name}", "no codes or no scale", "both, as PackedNetwork.save writes")
    codes = unpack_bits(content[f"codes/{name}"], _width(about["points"]), shape.numel())
    points = uniform_points(about["points"], scaling, dtype=scale.dtype) if learned is None else learned
    # What the scaled values were before rounding is not kept.
    scaled = Scaled(scale.new_empty(0), scale[:, None], None if offset is None else offset[:, None], shape)
    return Coded(codes, points, scaled, _DTYPES[about["dtype"]], learned is not None, scaling)


def _on_cpu(value: Coded) -> Coded:
    scaled = value.scaled
    offset = None if scaled.offset is None else scaled.offset.cpu()
    kept = Scaled(scaled.scale.new_empty(0).cpu(), scaled.scale.cpu(), offset, scaled.shape)
    return Coded(value.codes.cpu(), value.points.cpu(), kept, value.dtype, value.learned, value.scaling)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
