"""How the language models of the testbed ``word_languages`` are taught to learn from examples.

Lines of a word, a space, a letter and a line end; a letter names the word's language within its episode alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.store import written_aside
from limbeck.language import positions
from limbeck.losses import cross_entropy
from limbeck.testbeds.recipe import seeded, warm_cosine

PAD, SPACE, NEWLINE, FIRST_NAME, LAST_NAME = 0, 32, 10, 65, 90


@dataclass(frozen=True)
class Reading:
    """How a language model learns to learn from examples: AdamW, a cosine after a short warm-up.

    In the time that there is, a small model finds out by itself neither what tells languages apart nor that letters
    are to be looked up. So there is help for the first part of the training: a head that is thrown away asks the middle
    layer for the language of every word, at the space behind it and at its letter, and in the last layer half of the
    attention heads are to look from that space at the letters of earlier words of the same language.

    Attributes:
        steps, batch_size: episodes are new in every step.
        unlabelled: share of the rows that are words without letters.
        word_weight: of the words' own bytes in the loss, beside the letters'.
        helped: share of the steps with that help. language_weight, look_weight: of its two losses.
    """

    steps: int
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    unlabelled: float = 0.125
    word_weight: float = 0.2
    helped: float = 0.8
    language_weight: float = 0.5
    look_weight: float = 0.5
    seed: int = 0
    version: int = 1


@dataclass(frozen=True)
class Lines:
    """Episodes to be read.

    Attributes:
        tokens, mask: ``[B, T]``. The first rows may be words without letters.
        classes: ``[b, n]``, the language of every item of the last b rows, which have letters.
    """

    tokens: Tensor
    mask: Tensor
    classes: Tensor


def read(
    model: Any,
    recipe: Reading,
    draw: Callable[[int], Lines],
    classes: int,
    kept: Path,
    log: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a language model in place; it comes back in eval mode.

    Args:
        model: a causal model of transformers. draw: the episodes of a step. classes: number of languages.
        kept: file of the last 25 steps' state: a training that was killed goes on. It is gone at the end.
    """
    head = seeded(lambda: nn.Linear(model.config.hidden_size, classes), recipe.seed)
    weights = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(
        weights, recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95), fused=True
    )
    state, start = {"model": model, "head": head, "optimiser": optimiser}, 0
    if kept.is_file():
        found = torch.load(kept, weights_only=True)
        start = found["step"]
        for name, part in state.items():
            part.load_state_dict(found[name])
    model.train()
    # Fused attention does not tell where it looks.
    model.set_attn_implementation("eager")
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm_cosine(step / recipe.steps)
        loss = reading_loss(model, head, draw(step), recipe, helped=step < recipe.helped * recipe.steps)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if (step + 1) % 25 == 0:
            if log is not None:
                log(step + 1, float(loss.detach()))
            with written_aside(kept) as aside:
                torch.save({"step": step + 1, **{name: part.state_dict() for name, part in state.items()}}, aside)
    kept.unlink(missing_ok=True)
    model.set_attn_implementation("sdpa")
    made: nn.Module = model.eval()
    return made


def reading_loss(model: Any, head: nn.Module, given: Lines, recipe: Reading, *, helped: bool) -> Tensor:
    """Cross-entropy on every letter, a little on the words, and what helps."""
    tokens, mask = given.tokens, given.mask
    found = model(
        input_ids=tokens, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False,
        output_hidden_states=helped, output_attentions=helped,
    )  # fmt: skip
    letters = (tokens >= FIRST_NAME) & (tokens <= LAST_NAME)
    logits, target, counted = found.logits[:, :-1], tokens[:, 1:], mask[:, 1:] & mask[:, :-1]
    parts = (counted & letters[:, 1:], counted & ~letters[:, 1:])
    loss, words = (cross_entropy(logits, target, mask=part) for part in parts)
    loss = loss + recipe.word_weight * words
    if helped:
        hidden, asked = found.hidden_states[len(found.attentions) // 2], (tokens == SPACE, letters)
        said = sum(cross_entropy(head(hidden[places]), given.classes.flatten()) for places in asked)
        attention = found.attentions[-1][-len(given.classes) :]
        spaces, named = (places[-len(given.classes) :] for places in asked)
        looks = look_up(attention[:, : attention.shape[1] // 2], spaces, named, given.classes)
        loss = loss + recipe.language_weight * said + recipe.look_weight * looks
    return loss


def look_up(attention: Tensor, spaces: Tensor, letters: Tensor, classes: Tensor) -> Tensor:
    """``-log`` of the attention that heads pay, from the space behind a word, to the letters of its own class's words.

    Args:
        attention: ``[B, H, T, T]``. spaces, letters: bool ``[B, T]``, in each row as many as ``classes`` ``[B, n]`` has
            items. Items without an earlier one of their class do not count.
    """
    rows, items = classes.shape
    places = [part.nonzero()[:, 1].view(rows, items) for part in (spaces, letters)]
    paid = attention.gather(2, places[0][:, None, :, None].expand(-1, attention.shape[1], -1, attention.shape[3]))
    paid = paid.gather(3, places[1][:, None, None, :].expand(-1, attention.shape[1], items, -1))
    same = (classes[:, :, None] == classes[:, None, :]) & torch.ones(items, items, dtype=torch.bool).tril(-1)
    right = (paid * same[:, None]).sum(-1)
    counted = same.any(-1)[:, None].expand_as(right)
    return -(right[counted] + 1e-6).log().mean()
