"""Which blocks of a network matter: what each changes, and what is lost without it, on samples of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.split import Input, input_length, take
from limbeck.errors import UserError
from limbeck.models.network import Network
from limbeck.nn.mode import evaluating
from limbeck.taps import blocks

MEASURES = ("influence", "loss")
#: Samples that are looked at, spread over the training data; the loss takes a pass per block.
SAMPLES = {"influence": 32, "loss": 16}
_BATCH = 4


def block_importance(network: Network, samples: Input, measure: str = "influence") -> list[float]:
    """A number for every block of a network's main stack; the larger, the more it matters.

    ``influence`` is ``1 - cos(x, f(x))``, the mean over positions of a block's input x and output f(x): a block that
    turns nothing does nothing. ``loss`` is by how many nats per token a language model's own loss rises when the block
    is left out, which also sees what later blocks make of it.

    Source: Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024 (Block
    Influence, and its comparison with the perplexity without a layer).

    Args:
        samples: raw, as ``network.prepare`` reads them; :data:`SAMPLES` of them are used.

    Raises:
        UserError: an unknown measure, the loss of a network that predicts no tokens, blocks that change their input's
            shape.
    """
    if measure not in MEASURES:
        raise UserError("importance", measure, MEASURES)
    if measure == "loss" and network.targets is None:
        raise UserError("importance", measure, "influence", "only language models have a loss of their own")
    _, stack = blocks(network.module)
    count = min(SAMPLES[measure], input_length(samples))
    chosen = torch.linspace(0, input_length(samples) - 1, count).long()
    device = next(network.module.parameters()).device
    batches = [_batch(network, take(samples, part), device) for part in torch.split(chosen, _BATCH)]
    with evaluating(network.module), torch.inference_mode():
        if measure == "influence":
            return _influence(network, list(stack.children()), batches)
        whole = _loss(network, batches)
        found = []
        for block in stack.children():
            with _left_out(block):
                found.append(_loss(network, batches) - whole)
        return found


def important_layers(scores: Sequence[float], count: int) -> list[int]:
    """Numbers of the ``count`` blocks with the largest scores, in their own order; of equal ones the earlier."""
    ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return sorted(ranked[:count])


def _batch(network: Network, raw: Any, device: torch.device) -> dict[str, Any]:
    given = network.prepare(raw)
    moved = {name: value.to(device) for name, value in given.items()} if isinstance(given, dict) else given.to(device)
    batch = {"input": moved}
    return batch if network.targets is None else {**batch, **network.targets(batch)}


def _influence(network: Network, stack: Sequence[nn.Module], batches: Sequence[dict[str, Any]]) -> list[float]:
    totals, counts = [0.0] * len(stack), [0] * len(stack)
    present: Tensor | None = None

    def look(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = _states(args, kwargs), output[0] if isinstance(output, tuple) else output
            if before.shape != after.shape:
                given = f"a block from {list(before.shape)} to {list(after.shape)}"
                raise UserError("importance", given, "blocks that keep their input's shape")
            turned = 1 - functional.cosine_similarity(before.float(), after.float(), dim=-1)
            if present is not None and present.shape == turned.shape:
                turned = turned[present]
            totals[place] += float(turned.sum())
            counts[place] += turned.numel()

        return hook

    handles = [block.register_forward_hook(look(place), with_kwargs=True) for place, block in enumerate(stack)]
    try:
        for batch in batches:
            mask = batch["input"].get("attention_mask") if isinstance(batch["input"], dict) else None
            present = None if mask is None else mask.bool()
            network.forward(network.module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(count, 1) for total, count in zip(totals, counts)]


def _loss(network: Network, batches: Sequence[dict[str, Any]]) -> float:
    total, tokens = 0.0, 0
    for batch in batches:
        logits, mask = network.forward(network.module, batch)["logits"], batch["mask"]
        total += float(functional.cross_entropy(logits[mask].float(), batch["target"][mask], reduction="sum"))
        tokens += int(mask.sum())
    return total / max(tokens, 1)


@contextmanager
def _left_out(block: nn.Module) -> Iterator[None]:
    """A block that gives what it is given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = _states(args, kwargs)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
