"""Causal language models read up to their head: hidden states instead of logits, for losses in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.sequences import answer_logits
from limbeck.nn.mode import evaluating
from limbeck.objectives.chunked import BIAS, HIDDEN, WEIGHT, Head
from limbeck.signals import Batch


def answer_hidden(model: nn.Module, batch: Batch, vocabulary: int | None = None) -> dict[str, Tensor]:
    """As :func:`~limbeck.language.answer_logits`, up to the head: ``hidden`` ``[B, A, W]`` of every answer token.

    With it come ``head_weight`` ``[V, W]`` and, where there is one, ``head_bias``: ``hidden @ head_weight^T + bias`` are
    the logits. Only for models of which :func:`has_plain_head` is true.

    Args:
        vocabulary: only so many rows of the head; those behind them are padding.
    """
    count = batch["target"].shape[1]
    inner: Any = model.base_model
    hidden = inner(**batch["input"], use_cache=False)[0]
    weight, bias = _head(model, vocabulary)
    found = {HIDDEN: hidden[:, -count - 1 : -1], WEIGHT: weight}
    return found if bias is None else {**found, BIAS: bias}


def head_of(model: nn.Module, vocabulary: int | None = None) -> Head:
    """The head of a model as constants, wherever the model is by then."""

    def head() -> tuple[Tensor, Tensor | None]:
        weight, bias = _head(model, vocabulary)
        return weight.detach(), None if bias is None else bias.detach()

    return head


@torch.no_grad()
def has_plain_head(model: nn.Module) -> bool:
    """Whether logits are hidden states times a linear head and nothing more, found out on a few tokens.

    Some models scale or cap their logits (Cohere, Granite, Gemma 2); they are read by
    :func:`~limbeck.language.answer_logits`.
    """
    outputs = getattr(model, "get_output_embeddings", None)
    if outputs is None or not isinstance(outputs(), nn.Linear) or getattr(model, "base_model", model) is model:
        return False
    device = next(model.parameters()).device
    ids = torch.arange(4, device=device)[None] % len(_head(model)[0])
    batch = {"input": {"input_ids": ids}, "target": ids[:, 1:]}
    with evaluating(model):
        logits = answer_logits(model, batch)["logits"]
        try:
            found = answer_hidden(model, batch)
        except (TypeError, KeyError, IndexError):
            return False
    if not isinstance(found[HIDDEN], Tensor) or found[HIDDEN].shape[-1] != found[WEIGHT].shape[-1]:
        return False
    made = nn.functional.linear(found[HIDDEN], found[WEIGHT], found.get(BIAS))
    return made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-3, atol=1e-3)


def _head(model: Any, vocabulary: int | None = None) -> tuple[Tensor, Tensor | None]:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError("model", type(model).__name__, "a model with a linear head")
    bias = None if head.bias is None else head.bias[:vocabulary]
    return head.weight[:vocabulary], bias
