"""Codecs of vectors: even steps by row, and product quantisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from limbeck.cache.contract import Codec, Parts, dense_value
from limbeck.errors import UserError, require
from limbeck.signals import SparseLogits

#: Words of a part's codebook: what one byte tells apart.
WORDS = 256


class Even(Codec):
    """``2**bits`` even steps between the smallest and the largest element of every row (last axis).

    The row's step and middle are float32, so a constant row is exact, a shift costs nothing, and a scalar signal is
    exact too. Two elements of four bits share a byte.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.steps, self.half = bits, (1 << bits) - 1, 1 << (bits - 1)
        self.name = f"int{bits}"
        self.error = f"(max - min of the row) / {2 * self.steps}, and float32 rounding"

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        rows = self._rows(dense_value(value, self.name).float())
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        middle = low / 2 + high / 2
        step = high / self.steps - low / self.steps
        levels = ((rows - middle) / step.clamp_min(torch.finfo(torch.float32).tiny)).round()
        stored = levels.clamp(-self.half, self.half - 1).to(torch.int8)
        if self.bits == 4:
            pairs = torch.nn.functional.pad(stored, (0, stored.shape[-1] % 2)).unflatten(-1, (-1, 2)) + self.half
            stored = (pairs[..., 0] * 16 + pairs[..., 1]).to(torch.uint8)
        return {"value": stored, "scale": step.squeeze(-1), "offset": middle.squeeze(-1)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        levels = parts["value"]
        if self.bits == 4:
            levels = torch.stack([levels >> 4, levels & 15], -1).flatten(-2)[..., : shape[-1] if shape else 1]
            levels = levels.to(torch.int8) - self.half
        value = torch.addcmul(parts["offset"].unsqueeze(-1), levels.float(), parts["scale"].unsqueeze(-1))
        return value.reshape(len(value), *shape).to(dtype or torch.float32)

    def bound(self, value: Tensor) -> Tensor:
        rows = self._rows(value.double())
        spread = rows.amax(-1, keepdim=True) - rows.amin(-1, keepdim=True)
        # Middle, step and product are rounded to float32: a few units of the largest element.
        rounding = rows.abs().amax(-1, keepdim=True) * 4 * torch.finfo(torch.float32).eps
        bound: Tensor = spread / (2 * self.steps) + rounding
        return bound.expand_as(rows).reshape(value.shape)

    def in_range(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)

    @staticmethod
    def _rows(value: Tensor) -> Tensor:
        return value.unsqueeze(-1) if value.dim() == 1 else value


class ProductQuantizer(Codec):
    """Each of ``M`` parts of a vector is the nearest of 256 words, a byte: ``M`` bytes per vector.

    Jegou, Douze and Schmid, Product quantization for nearest neighbor search, PAMI 2011. The codebook is learnt by
    faiss from the first batch that is written and kept in the manifest as float16; from then on encoding a row depends
    on the row alone. Decoding needs no faiss. There is no bound on the error of a vector unlike those of that batch.

    Args:
        parts: M; the width of the vectors is a multiple of it.
        codebook: ``[M, 256, width / M]``, once it is learnt.
    """

    def __init__(self, parts: int, codebook: Tensor | None = None) -> None:
        if parts < 1:
            raise UserError("codec", f"pq:{parts}", "pq:M with M of at least 1")
        self.parts, self.codebook = parts, codebook
        self.name = f"pq:{parts}"
        self.error = "the distance of every part from the nearest of its 256 words; no bound"

    def learn(self, value: Tensor | SparseLogits) -> Tensor:
        """The codebook of vectors ``[N, ..., width]``, at least 256 of them; also kept for encoding.

        Raises:
            UserError: fewer vectors, or a width that does not fit. MissingExtra: faiss is not installed.
        """
        rows = dense_value(value, self.name).detach().float().cpu().flatten(0, -2)
        width = rows.shape[-1]
        if width % self.parts:
            raise UserError("codec", self.name, f"pq:M with M that divides the width, {width}")
        if len(rows) < WORDS:
            hint = "its codebook is learnt from the first batch: make that larger, 10,000 vectors are good"
            raise UserError("codec", f"{self.name} of {len(rows)} vectors", f"at least {WORDS}", hint)
        faiss = require("faiss", "quantised")
        quantizer = faiss.ProductQuantizer(width, self.parts, 8)
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(numpy.ascontiguousarray(rows.numpy()))
        words = torch.from_numpy(faiss.vector_to_array(quantizer.centroids).copy())
        self.codebook = words.reshape(self.parts, WORDS, width // self.parts).half()
        return self.codebook

    def encode(self, value: Tensor | SparseLogits) -> dict[str, Tensor]:
        words, rows = self._words(), dense_value(value, self.name).float()
        pieces = rows.unflatten(-1, (self.parts, -1))
        found = [
            torch.cdist(some.transpose(0, 1), words.to(some.device)).argmin(-1).T
            for some in pieces.flatten(0, -3).split(4096)
        ]
        codes = torch.cat(found) if found else pieces.new_zeros(0, self.parts)
        return {"value": codes.reshape(*rows.shape[:-1], self.parts).to(torch.uint8)}

    def decode(self, parts: Parts, shape: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Tensor:
        codes = parts["value"].long()
        words = self._words().to(codes.device)
        value = words[torch.arange(self.parts, device=codes.device), codes]
        return value.reshape(len(codes), *shape).to(dtype or torch.float16)

    def bound(self, value: Tensor) -> Tensor:
        return torch.full_like(value, torch.inf, dtype=torch.float64)

    def in_range(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)

    def _words(self) -> Tensor:
        if self.codebook is None:
            raise UserError("codec", self.name, "one whose codebook was learnt")
        return self.codebook.float()
