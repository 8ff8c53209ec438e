"""A teacher of which only the output head is here: its hidden states come from elsewhere, usually a cache."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_tensors, fingerprint_text
from limbeck.errors import UserError
from limbeck.nn.output_head import OutputHead
from limbeck.signals import Batch, Signals, dense
from limbeck.sources.base import Source


class HeadApplied(Source):
    """``logits`` from another source's hidden states, through the teacher's frozen head.

    A hidden state of a few hundred numbers stands for the whole distribution over the vocabulary, so a cache of them is
    small and nothing is cut off: from float32 states the logits are those of the live teacher, from float16 or int8
    ones they differ by the codec's rounding. The head is all that is kept of the teacher in memory.

    >>> write_cache(Live(teacher, forward=answer_hidden), batches, "states/", ("hidden",), ragged=("hidden",))
    >>> source = HeadApplied(Cached("states/"), read_head("teacher/"))

    Args:
        source: gives ``hidden`` ``[..., width]``, behind the last normalisation
            (:func:`limbeck.language.answer_hidden`).
        head: :func:`limbeck.models.heads.read_head` of the teacher's folder, or ``OutputHead.of(model)``.
        hidden: name of the states.
        whole: give the logits as a tensor. With False they stay
            :class:`~limbeck.signals.HeadLogits`, which cross-entropy and divergences work through a chunk of rows at
            a time where the student's are too (:func:`limbeck.language.answer_head`).
    """

    def __init__(self, source: Source, head: OutputHead, *, hidden: str = "hidden", whole: bool = True) -> None:
        if hidden == "logits":
            raise UserError("hidden", hidden, "another name than that of what is made of it")
        self.source, self.hidden, self.whole = source, hidden, whole
        self.head = head.map(Tensor.detach)

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        if needs and "logits" not in needs:
            return self.source(batch, needs)
        asked = dict.fromkeys((*(name for name in needs if name != "logits"), self.hidden)) if needs else ()
        signals = self.source(batch, tuple(asked))
        hidden = dense(signals, self.hidden)
        if hidden.device != self.head.weight.device:
            self.head = self.head.map(lambda tensor: tensor.to(hidden.device))
        with torch.no_grad():
            logits = self.head(hidden.to(self.head.weight.dtype))
            return {**signals, "logits": logits.to_dense() if self.whole else logits}

    def fingerprint(self) -> str:
        tensors = {"weight": self.head.weight, **({} if self.head.bias is None else {"bias": self.head.bias})}
        settings = [self.hidden, self.head.scale, self.head.cap]
        return fingerprint_text("head", self.source.fingerprint(), settings, fingerprint_tensors(tensors))

    def to(self, device: torch.device | str) -> HeadApplied:
        self.source.to(device)
        self.head = self.head.map(lambda tensor: tensor.to(device))
        return self

    def modules(self) -> list[nn.Module]:
        return self.source.modules()

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)

    def after_step(self, student: nn.Module, step: int) -> None:
        self.source.after_step(student, step)

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        self.source.after_epoch(student, epoch)
