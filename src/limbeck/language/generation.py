"""Writing with a causal or encoder-decoder model: sampled or greedy, from any prefix, the same in every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.language.encoder_decoder import Decoder, is_encoder_decoder
from limbeck.language.sequences import Sequences, left_aligned, positions
from limbeck.nn.mode import evaluating


@torch.no_grad()
def generate(
    model: nn.Module,
    given: Sequences,
    *,
    length: int,
    end: int | None,
    pad: int,
    views: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> Sequences:
    """Let a transformers model, causal or encoder-decoder, write the answers on, with its cache of keys and values.

    Token k of a row is chosen with the k-th number of that row's ``view`` (:mod:`limbeck.data.views`). So a sample does
    not depend on the other rows, on the order, or on the process; and going on from the beginning of a sample with its
    own view gives that sample again. (Rounding differs between batch shapes; it moves a choice once in millions.)

    Args:
        model: in any mode; it writes in evaluation mode and without gradient.
        given: prompts. What their answers hold already is a prefix to go on from, of any length per row. A prefix that
            ends with ``end`` is left as it is.
        length: tokens of an answer at most, prefix included.
        end: token that ends a text; None for a model without one. pad: filler behind it.
        views: int64 ``[B]`` for samples; None for the most probable token at every place.
        temperature, top_p, top_k: of the samples.

    Returns:
        The prompts with answers ``[B, A]``, A at most ``length``.
    """
    if not temperature > 0:
        raise UserError("temperature", temperature, "a positive number; views=None takes the most probable token")
    if not 0 < top_p <= 1:
        raise UserError("top_p", top_p, "above 0, at most 1")
    if top_k is not None and top_k < 1:
        raise UserError("top_k", top_k, "1 or more, or None for all tokens")
    rows, written = len(given), given.lengths.clone()
    answer = given.answer.new_full((rows, max(length, given.answer.shape[1])), pad)
    answer[:, : given.answer.shape[1]] = torch.where(given.answer_mask, given.answer, pad)
    done = written >= length
    if end is not None and given.answer.shape[1]:
        last = given.answer.gather(1, (written - 1).clamp_min(0)[:, None]).squeeze(1)
        done = done | ((written > 0) & (last == end))
    everyone = torch.arange(rows, device=answer.device)
    with evaluating(model):
        reader = (_Forced if is_encoder_decoder(model) else _Joined)(model, given)
        while not bool(done.all()):
            logits = reader.logits()
            numbers = None if views is None else uniform(views, written)
            chosen = choose(logits, numbers, temperature=temperature, top_p=top_p, top_k=top_k)
            live = ~done & reader.ready(written)
            answer[everyone[live], written[live]] = chosen[live]
            written = written + live
            done = done | (written >= length)
            if end is not None:
                done = done | (live & (chosen == end))
            reader.add(answer, torch.where(live, chosen, pad), live)
    width = max(int(written.max()), 1)
    present = torch.arange(width, device=answer.device) < written[:, None]
    return given.with_answers(answer[:, :width], present)


class Generator(Protocol):
    """Whatever can write answers on: :class:`Decoding` with a model that is here, or
    :class:`~limbeck.language.ServedDecoding` with one behind a server."""

    @property
    def pad(self) -> int:
        """Filler behind an answer."""

    @property
    def temperature(self) -> float:
        """Of the samples."""

    @property
    def top_p(self) -> float:
        """Of the samples."""

    def __call__(self, model: nn.Module, given: Sequences, views: Tensor | None = None) -> Sequences:
        """The prompts with answers, which begin with those of ``given``; the most probable ones without views."""


@dataclass(frozen=True)
class Decoding:
    """The settings of :func:`generate` for one tokenizer and task, as a function of model, texts and views."""

    length: int
    end: int | None
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __call__(self, model: nn.Module, given: Sequences, views: Tensor | None = None) -> Sequences:
        """Write on from ``given``; greedily without views."""
        return generate(
            model, given, length=self.length, end=self.end, pad=self.pad, views=views,
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
        )  # fmt: skip


def choose(
    logits: Tensor, numbers: Tensor | None, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None
) -> Tensor:
    """A token per row of ``logits`` ``[B, V]``: where ``numbers`` ``[B]`` in [0, 1) fall, or the most probable one.

    Of the ``top_k`` most probable tokens, then of the fewest that hold ``top_p`` of what these have.
    """
    if numbers is None:
        return logits.argmax(dim=-1)
    probability = (logits.double() / temperature).softmax(dim=-1)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = probability.topk(top_k)
        probability = torch.zeros_like(probability).scatter(-1, kept.indices, kept.values)
        probability = probability / probability.sum(dim=-1, keepdim=True)
    if top_p < 1:
        ranked, order = probability.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        probability = torch.zeros_like(probability).scatter(-1, order, ranked.masked_fill(before >= top_p, 0.0))
    total = probability.cumsum(dim=-1)
    wanted = numbers.to(total) * total[:, -1]
    # right=True, so that a class without mass is never chosen.
    found = torch.searchsorted(total, wanted[:, None], right=True).squeeze(-1)
    return found.clamp_max(logits.shape[-1] - 1)


class _Joined:
    """A causal model behind prompts and prefixes, which end in one column."""

    def __init__(self, model: nn.Module, given: Sequences) -> None:
        self.model, self.cache = model, None
        self.ids, self.mask = left_aligned(*given.joined())
        self.place = positions(self.mask)

    def logits(self) -> Tensor:
        """Of every row's next token, ``[B, V]``."""
        found = self.model(
            input_ids=self.ids, attention_mask=self.mask.long(), position_ids=self.place, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache = found.past_key_values
        logits: Tensor = found.logits[:, -1]
        return logits

    def ready(self, written: Tensor) -> Tensor:
        """Rows whose next token is to be chosen now: all."""
        return torch.ones_like(written, dtype=torch.bool)

    def add(self, answer: Tensor, chosen: Tensor, live: Tensor) -> None:
        """Take note of what was chosen, in the rows that go on."""
        self.ids, self.mask = chosen[:, None], torch.cat([self.mask, live[:, None]], 1)
        self.place = self.place[:, -1:] + 1


class _Forced:
    """An encoder-decoder, whose decoder reads prefixes token by token: all rows are at one place."""

    def __init__(self, model: nn.Module, given: Sequences) -> None:
        self.decoder = Decoder(model, given.prompt, given.prompt_mask)
        self.place = 0
        self.ids: Tensor | None = None

    def logits(self) -> Tensor:
        """Of the token at this place, ``[B, V]``."""
        return self.decoder(self.ids)

    def ready(self, written: Tensor) -> Tensor:
        """Rows whose prefix ends here."""
        return written == self.place

    def add(self, answer: Tensor, chosen: Tensor, live: Tensor) -> None:
        """Go on by one place, with the prefix's token or the chosen one."""
        self.ids, self.place = answer[:, self.place, None], self.place + 1
