"""Conditions embedded once and kept: text encoders are large, and score distillation needs nothing but prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.data.loaders import TensorLoader
from limbeck.data.store import content_hash, written_aside
from limbeck.errors import UserError

Encode = Callable[[list[str]], Tensor]


class ConditionBank:
    """Embeddings of conditions ``[N, ...]`` and of the null condition ``[...]``."""

    def __init__(self, embeddings: Tensor, null: Tensor) -> None:
        if embeddings.shape[1:] != null.shape:
            raise UserError("null", list(null.shape), f"the shape of one embedding, {list(embeddings.shape[1:])}")
        self.embeddings, self.null = embeddings.detach(), null.detach()

    @classmethod
    def encode(
        cls,
        prompts: Sequence[str],
        encode: Encode,
        *,
        name: str,
        null: str = "",
        batch_size: int = 64,
        file: Path | str | None = None,
    ) -> ConditionBank:
        """Embed ``prompts`` and ``null`` with ``encode`` (texts -> ``[B, ...]``); then the encoder can be dropped.

        Args:
            name: of the encoder with its revision; a file made by another one is refused.
            file: safetensors file to keep them in; if it is there and fits, nothing is encoded.
        """
        texts = [*prompts, null]
        key = content_hash({"encoder": name, "texts": texts})
        path = Path(file) if file is not None else None
        if path is not None and path.is_file():
            kept = load_file(path)
            if list(kept) != [key]:
                raise UserError("file", path, "embeddings of these prompts and this encoder", "remove it to embed anew")
            return cls(kept[key][:-1], kept[key][-1])
        with torch.no_grad():
            parts = [encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        embeddings = torch.cat(parts).cpu().contiguous()
        if path is not None:
            with written_aside(path) as aside:
                save_file({key: embeddings}, aside)
        return cls(embeddings[:-1], embeddings[-1])

    @classmethod
    def of_table(cls, table: Tensor) -> ConditionBank:
        """A table of class embeddings whose last row is the null class, as small conditional UNets have."""
        return cls(table[:-1], table[-1])

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, index: Tensor) -> Tensor:
        """Embeddings of conditions by number."""
        return self.embeddings[index]

    def loader(self, batch_size: int, *, copies: int = 1, seed: int = 0, **options: Any) -> TensorLoader:
        """Batches of conditions in random order; ``copies`` repeats a short list, so that epochs are not tiny."""
        index = torch.arange(len(self)).repeat(copies)
        data = {"input": self.embeddings[index], "target": index, "id": torch.arange(len(index))}
        return TensorLoader(data, batch_size, seed=seed, drop_last=True, **options)
