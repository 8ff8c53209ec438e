"""A text behind a context: the context in full, or as vectors that stand for it.

A frozen model that reads the whole context and the same model behind a short prefix say something about the very same
tokens, at other places. Both functions here return the logits at the text's own tokens, column for column with
``InContext.text``, and build positions from the masks, so that padding anywhere moves nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.language.sequences import pad_rows, positions
from limbeck.signals import Batch

COLUMNS = ("context", "context_mask", "text", "text_mask", "answer")


@dataclass(frozen=True)
class InContext:
    """A batch of contexts (demonstrations, a document) with texts (a query and its answer).

    Attributes:
        context, context_mask: ``[B, C]``, padded on either side or between; a row may be empty.
        text, text_mask: ``[B, X]``, tokens at the left end of every row.
        answer: bool ``[B, X]``, which tokens of the text are the answer.
    """

    context: Tensor
    context_mask: Tensor
    text: Tensor
    text_mask: Tensor
    answer: Tensor

    def __post_init__(self) -> None:
        for name in ("context", "text"):
            ids, mask = getattr(self, name), getattr(self, f"{name}_mask")
            if ids.shape != mask.shape or ids.dim() != 2 or mask.dtype != torch.bool or len(ids) != len(self.text):
                given = f"{list(ids.shape)} with a mask of {mask.dtype} {list(mask.shape)}"
                raise UserError(name, given, "tokens [B, L] with a bool mask of that shape, one row per text")
        if self.text.shape[1] == 0 or not bool(self.text_mask[:, 0].all()):
            raise UserError("text", "a row that is empty or padded on the left", "texts that are padded on the right")
        if self.answer.shape != self.text.shape or bool((self.answer & ~self.text_mask).any()):
            raise UserError("answer", list(self.answer.shape), "a bool mask [B, X] of tokens of the text")

    @classmethod
    def of(cls, given: Mapping[str, Tensor]) -> InContext:
        """From the columns of a loader's ``input``."""
        if not set(COLUMNS) <= set(given):
            raise UserError("input", sorted(given), COLUMNS)
        return cls(**{name: given[name] for name in COLUMNS})

    @classmethod
    def pad(
        cls,
        contexts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        answers: Sequence[int] | None = None,
        *,
        pad: int,
    ) -> InContext:
        """From lists of token ids, padded with ``pad``; of every text the last ``answers`` tokens are the answer."""
        context, context_mask = pad_rows(contexts, pad, left=False)
        text, text_mask = pad_rows(texts, pad, left=False)
        counts = torch.tensor(list(answers) if answers is not None else [0] * len(texts))
        ends = text_mask.sum(1)
        place = torch.arange(text.shape[1])
        answer = text_mask & (place >= (ends - counts)[:, None])
        return cls(context, context_mask, text, text_mask, answer)

    def __len__(self) -> int:
        return len(self.text)

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name, as :meth:`of` reads them."""
        return {name: getattr(self, name) for name in COLUMNS}

    def select(self, rows: Tensor) -> InContext:
        """Some of the rows, or a row several times."""
        return InContext.of({name: value[rows] for name, value in self.columns().items()})

    def trimmed(self) -> InContext:
        """Without columns that are padding in every row; a text column stays."""
        return self.cut(self.context_mask.any(0), max(int(self.text_mask.any(0).sum()), 1))

    def without_context(self) -> InContext:
        """The texts alone: zero-shot."""
        return self.cut(torch.zeros_like(self.context_mask[0]), self.text.shape[1])

    def cut(self, kept: Tensor, width: int) -> InContext:
        """The context's columns ``kept`` (bool ``[C]``) and the first ``width`` of the text's."""
        return InContext(
            self.context[:, kept], self.context_mask[:, kept], self.text[:, :width], self.text_mask[:, :width],
            self.answer[:, :width],
        )  # fmt: skip

    def batch(self) -> dict[str, Any]:
        """As a batch of :func:`full_context_logits`; ``target`` and ``mask`` are of the answer's tokens, each in the
        column whose logits predict it."""
        ahead = torch.cat([self.text[:, 1:], self.text[:, :1]], 1)
        asked = torch.cat([self.answer[:, 1:], torch.zeros_like(self.answer[:, :1])], 1)
        return {"input": self.columns(), "target": ahead, "mask": asked}


def in_context_batch(batch: Batch) -> dict[str, Any]:
    """Transform of a loader: columns of :class:`InContext` get ``target`` and ``mask`` of their answers.

    Contexts lose the padding that all of them share; texts keep their width, which cached signals have too. The view
    seed goes, since nothing is drawn: a cache holds the same signals for every epoch. Samples may be :func:`grouped`.
    """
    columns, ids = batch["input"], batch["id"]
    if columns["text"].dim() == 3:
        ids = (ids[:, None] + torch.arange(columns["text"].shape[1])).flatten()
        columns = {name: value.flatten(0, 1) for name, value in columns.items()}
    given = InContext.of(columns)
    made = given.cut(given.context_mask.any(0), given.text.shape[1]).batch()
    return {**{key: value for key, value in batch.items() if key not in ("view", "target")}, "id": ids, **made}


def grouped(samples: Split, size: int) -> dict[str, Any]:
    """Samples for a loader of which ``size`` in a row, with one context, always come in the same batch: then a
    compressor reads that context once. :func:`in_context_batch` takes the groups apart.

    Raises:
        UserError: rows of a group differ in their context, or their ids do not count up.
    """
    if len(samples) % size:
        raise UserError("size", size, f"a divisor of the {len(samples)} samples")
    columns = {name: value.unflatten(0, (-1, size)) for name, value in samples.input.items()}  # type: ignore[union-attr]
    first, ids = columns["context"][:, :1], samples.id.view(-1, size)
    if not bool((columns["context"] == first).all()) or not torch.equal(ids, ids[:, :1] + torch.arange(size)):
        raise UserError("samples", "groups of unequal contexts or ids", f"{size} rows with one context, ids in a row")
    return {"input": columns, "id": ids[:, 0].clone()}


@dataclass(frozen=True)
class Prefix:
    """Vectors that stand in front of a text, in the place of its context's tokens.

    Attributes:
        vectors: ``[B, L, width]``, input embeddings of the model that is to read them.
        mask: bool ``[B, L]``, those that are there.
    """

    vectors: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def repeat(self, rows: int) -> Prefix:
        """One prefix in front of ``rows`` texts, without a copy."""
        if len(self) not in (1, rows):
            raise UserError("rows", rows, f"{len(self)}, as many as there are prefixes, or one prefix for all")
        return Prefix(self.vectors.expand(rows, -1, -1), self.mask.expand(rows, -1))

    def save(self, path: Path | str) -> None:
        """As a safetensors file."""
        save_file({"vectors": self.vectors.detach().contiguous(), "mask": self.mask.contiguous()}, str(path))

    @classmethod
    def load(cls, path: Path | str) -> Prefix:
        """What :meth:`save` wrote."""
        found = load_file(str(path))
        if set(found) != {"vectors", "mask"}:
            raise UserError("prefix file", sorted(found), "vectors and mask, as Prefix.save writes them")
        return cls(found["vectors"], found["mask"])


def full_context_logits(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a causal language model on context and text.

    Returns:
        ``logits`` ``[B, X, V]`` at the text's tokens, each about the next one; ``counted`` ``[B, X]``, the text's mask.

    The head is not run on the context where the model allows it, and a context that several rows share is read once.
    """
    given = InContext.of(batch["input"])
    mask = torch.cat([given.context_mask, given.text_mask], 1)
    context, known, rows = different_contexts(given.context, given.context_mask)
    if len(context) < len(given) and "past_key_values" in inspect.signature(model.forward).parameters:
        options = {"attention_mask": known.long(), "position_ids": positions(known), "use_cache": True}
        read = model(input_ids=context, **options).past_key_values
        read.batch_select_indices(rows)
        logits = _run(model, {"input_ids": given.text, "past_key_values": read}, mask, given.text.shape[1])
    else:
        logits = _run(model, {"input_ids": torch.cat([given.context, given.text], 1)}, mask, given.text.shape[1])
    return {"logits": logits, "counted": given.text_mask}


def different_contexts(context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every context once: tokens ``[b, C]`` and bool mask ``[b, C]``, and the number ``[B]`` of each row's."""
    if len(context) < 2 or not context.numel():
        return context, mask, torch.arange(len(context), device=context.device)
    both = torch.stack([context.masked_fill(~mask, 0), mask.long()], 1)
    found, rows = both.unique(dim=0, return_inverse=True)
    return found[:, 0], found[:, 1].bool(), rows


def prefixed_logits(model: nn.Module, prefix: Prefix, text: Tensor, text_mask: Tensor) -> Tensor:
    """Logits ``[B, X, V]`` at the tokens of ``text`` behind a prefix of vectors; the vectors' own are dropped.

    The text's first token stands at the number of the row's vectors, as it would behind so many tokens.
    """
    prefix = prefix.repeat(len(text))
    embedded = model.get_input_embeddings()(text)  # type: ignore[operator]
    if prefix.vectors.shape[-1] != embedded.shape[-1]:
        raise UserError("prefix width", prefix.vectors.shape[-1], f"the model's, {embedded.shape[-1]}")
    vectors = torch.cat([prefix.vectors.to(embedded.dtype), embedded], 1)
    mask = torch.cat([prefix.mask, text_mask], 1)
    return _run(model, {"inputs_embeds": vectors}, mask, text.shape[1])


def pack_demonstrations(demonstrations: Sequence[Sequence[int]], limit: int | None = None) -> tuple[list[int], int]:
    """Demonstrations one behind the other, whole ones only, within ``limit`` tokens; the last ones are kept.

    Returns:
        the token ids, and how many demonstrations were left out.
    """
    chosen: list[Sequence[int]] = []
    room = limit
    for one in reversed(demonstrations):
        if room is not None and len(one) > room:
            break
        room = None if room is None else room - len(one)
        chosen.append(one)
    return [token for one in reversed(chosen) for token in one], len(demonstrations) - len(chosen)


def _run(model: nn.Module, given: dict[str, Tensor], mask: Tensor, keep: int) -> Tensor:
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "position_ids" in accepted:
        # Columns that a cache holds already are in the mask, and not among the tokens.
        options["position_ids"] = positions(mask)[:, -next(iter(given.values())).shape[1] :]
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    logits: Tensor = model(**given, attention_mask=mask.long(), **options).logits
    return logits[:, -keep:]
