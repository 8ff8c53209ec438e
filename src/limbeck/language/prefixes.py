"""A context as a few vectors: a small language model reads it, and learnt queries behind it take up what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.in_context import InContext, Prefix, different_contexts, prefixed_logits
from limbeck.language.sequences import positions
from limbeck.nn.projectors import TokenProjector
from limbeck.signals import Batch


class ContextCompressor(nn.Module):
    """``tokens [B, C] -> Prefix`` of ``length`` vectors in the input space of a model that never sees the tokens.

        h = reader([E(context) ; queries]),   vectors = tanh(W h_{last length} + b), or h itself at equal width

    Padding, on whichever side, is masked, and positions are counted without it: a row's vectors do not depend on the
    batch. An empty context gives a prefix whose mask is empty.

    Args:
        reader: a causal language model of transformers, all of which learns; a head is left out.
        length: of the prefix. width: of the model that will read it.
        limit: longest context in tokens. Cut longer ones by
            :func:`~limbeck.language.pack_demonstrations`, which leaves demonstrations whole.
        start: ``vocabulary`` begins the queries as embeddings of tokens drawn at random, ``normal`` as Gaussian noise
            of the reader's initial range; or the tokens to draw from, where many of a vocabulary never occur.
        seed: of the queries and the projector.
    """

    def __init__(
        self,
        reader: nn.Module,
        length: int,
        width: int,
        *,
        limit: int | None = None,
        start: str | Sequence[int] = "vocabulary",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if length < 1:
            raise UserError("length", length, "1 or more vectors")
        self.reader: Any = getattr(reader, "base_model", reader)
        table = self.reader.get_input_embeddings().weight
        spread = getattr(self.reader.config, "initializer_range", 0.02)
        self.length, self.limit = length, limit
        self.queries = nn.Parameter(start_vectors(table, length, start, seed, spread))
        self.projector: nn.Module = nn.Identity()
        if table.shape[1] != width:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projector = nn.Sequential(TokenProjector(table.shape[1], width), nn.Tanh())

    def forward(self, context: Tensor, context_mask: Tensor) -> Prefix:
        """Args: tokens ``[B, C]`` and their bool mask; C may be 0. Rows with the same context are read once."""
        different, known, rows = different_contexts(context, context_mask)
        if len(different) < len(context):
            once = self(different, known)
            return Prefix(once.vectors[rows], once.mask[rows])
        longest = int(context_mask.sum(1).max()) if context_mask.numel() else 0
        if self.limit is not None and longest > self.limit:
            raise UserError(
                "context", f"{longest} tokens", f"at most {self.limit}", "pack_demonstrations() keeps whole ones"
            )
        embedded = self.reader.get_input_embeddings()(context)
        queries = self.queries.to(embedded.dtype).expand(len(context), -1, -1)
        mask = torch.cat([context_mask, context_mask.new_ones(len(context), self.length)], 1)
        found = self.reader(
            inputs_embeds=torch.cat([embedded, queries], 1), attention_mask=mask.long(), position_ids=positions(mask)
        )
        vectors = self.projector(found.last_hidden_state[:, -self.length :])
        there = context_mask.any(1, keepdim=True).expand(-1, self.length)
        # A row without a context says nothing, whatever the queries alone would say.
        return Prefix(torch.where(there[..., None], vectors, 0.0), there)


class SharedPrompt(nn.Module):
    """The same learnt vectors for every context: prompt tuning, with the interface of a compressor.

    Args:
        table: input embeddings of the model that reads them. length, start, seed: as in :class:`ContextCompressor`.
    """

    def __init__(self, table: Tensor, length: int, *, start: str | Sequence[int] = "vocabulary", seed: int = 0) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start_vectors(table, length, start, seed))

    def forward(self, context: Tensor, context_mask: Tensor) -> Prefix:
        """The vectors, once per row."""
        vectors = self.vectors.expand(len(context), -1, -1)
        return Prefix(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool))


class BehindPrefix:
    """How a :class:`~limbeck.engine.Distiller` runs a student that makes prefixes: in front of a frozen model.

    Gradients flow through the model into the prefix. The model is no part of the student: not trained, not saved.

    Args:
        model: a causal language model of transformers; its weights are frozen here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(False).eval()

    def __call__(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``logits`` ``[B, X, V]`` at the text's tokens, ``counted`` ``[B, X]``."""
        given = InContext.of(batch["input"])
        prefix: Prefix = student(given.context, given.context_mask)
        if self.model.training:
            self.model.eval()
        self.model.to(prefix.vectors.device)
        return {"logits": prefixed_logits(self.model, prefix, given.text, given.text_mask), "counted": given.text_mask}


def start_vectors(table: Tensor, length: int, start: str | Sequence[int], seed: int, spread: float = 0.02) -> Tensor:
    """``[length, width]``: rows of ``table`` drawn at random, or Gaussian noise."""
    if isinstance(start, str) and start not in ("vocabulary", "normal"):
        raise UserError("start", start, "vocabulary, normal, or tokens to draw from")
    generator = torch.Generator().manual_seed(seed)
    if start == "normal":
        return torch.randn(length, table.shape[1], generator=generator) * spread
    tokens = torch.arange(len(table)) if isinstance(start, str) else torch.tensor(list(start))
    rows = tokens[torch.randint(len(tokens), (length,), generator=generator)]
    return table.detach().cpu()[rows].float().clone()
