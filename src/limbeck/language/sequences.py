"""Prompts with answers, and the one place that knows which logits predict which token.

A causal language model says at position i what token i + 1 is. Here prompts end, and answers begin, in one column of
the batch: prompts are padded on the left, answers on the right. So the logits of answer token k stand one column before
it for every row, and :func:`answer_logits` is the only function that shifts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.language.encoder_decoder import decoder_logits, is_encoder_decoder
from limbeck.losses import token_log_probs
from limbeck.nn.output_head import OutputHead
from limbeck.signals import Batch, Forward, HeadLogits, dense, name_output

COLUMNS = ("prompt", "prompt_mask", "answer", "answer_mask")


@dataclass(frozen=True)
class Sequences:
    """A batch of prompts with answers.

    Attributes:
        prompt, prompt_mask: ``[B, P]``, tokens at the right end of every row; True where there is one.
        answer, answer_mask: ``[B, A]``, tokens at the left end of every row. An end-of-text token counts as one.
        learnt: ``[B, A]``, the tokens that losses count; by default all of the answer. With turns of somebody else
            inside the answer, their tokens are in ``answer_mask`` and not here.
    """

    prompt: Tensor
    prompt_mask: Tensor
    answer: Tensor
    answer_mask: Tensor
    learnt: Tensor | None = None

    def __post_init__(self) -> None:
        for ids, mask, name in (
            (self.prompt, self.prompt_mask, "prompt"),
            (self.answer, self.answer_mask, "answer"),
        ):
            if ids.shape != mask.shape or ids.dim() != 2 or mask.dtype != torch.bool or len(ids) != len(self.prompt):
                given = f"{list(ids.shape)} with a mask of {mask.dtype} {list(mask.shape)}"
                raise UserError(name, given, "tokens [B, L] with a bool mask of that shape, one row per prompt")
        if not bool(self.prompt_mask[:, -1:].all()) or self.prompt.shape[1] == 0:
            raise UserError(
                "prompt", "a row that is empty or padded on the right", "prompts that are padded on the left",
                "left_aligned() moves the tokens",
            )  # fmt: skip

    @classmethod
    def of(cls, given: Mapping[str, Tensor]) -> Sequences:
        """From the columns of a loader's ``input``: ``prompt``, ``prompt_mask``, ``answer``, ``answer_mask``."""
        if not set(COLUMNS) <= set(given):
            raise UserError("input", sorted(given), COLUMNS)
        return cls(**{name: given[name] for name in COLUMNS}, learnt=given.get("learnt"))

    @classmethod
    def pad(
        cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None, *, pad: int
    ) -> Sequences:
        """From lists of token ids, padded with ``pad``."""
        answers = answers if answers is not None else [[] for _ in prompts]
        return cls(*pad_rows(prompts, pad, left=True), *pad_rows(answers, pad, left=False))

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def counted(self) -> Tensor:
        """``[B, A]``: the tokens that losses count."""
        return self.answer_mask if self.learnt is None else self.learnt & self.answer_mask

    @property
    def lengths(self) -> Tensor:
        """Tokens of every answer, ``[B]``."""
        return self.answer_mask.sum(1)

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name, as :meth:`of` reads them."""
        found = {name: getattr(self, name) for name in COLUMNS}
        return found if self.learnt is None else {**found, "learnt": self.learnt}

    def trimmed(self) -> Sequences:
        """Without columns that are padding in every row; one answer column stays."""
        left = int(self.prompt_mask.any(0).int().argmax())
        right = max(int(self.answer_mask.any(0).sum()), 1)
        return Sequences(
            self.prompt[:, left:], self.prompt_mask[:, left:], self.answer[:, :right], self.answer_mask[:, :right],
            None if self.learnt is None else self.learnt[:, :right],
        )  # fmt: skip

    def select(self, rows: Tensor) -> Sequences:
        """Some of the rows."""
        return Sequences.of({name: value[rows] for name, value in self.columns().items()})

    def as_prompts(self) -> Sequences:
        """Prompt and answer together as a prompt, with no answer."""
        ids, mask = left_aligned(*self.joined())
        empty = ids.new_zeros(len(ids), 0)
        return Sequences(ids, mask, empty, empty.bool())

    def with_answers(self, answer: Tensor, answer_mask: Tensor) -> Sequences:
        """The same prompts with other answers, all of whose tokens count."""
        return replace(self, answer=answer, answer_mask=answer_mask, learnt=None)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Tokens and mask of prompts and answers side by side, ``[B, P + A]``."""
        return torch.cat([self.prompt, self.answer], 1), torch.cat([self.prompt_mask, self.answer_mask], 1)

    def batch(self) -> dict[str, Any]:
        """``input`` of a transformers model; ``target`` and ``mask`` ``[B, A]`` of :func:`answer_logits`."""
        ids, mask = self.joined()
        given = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions(mask)}
        return {"input": given, "target": self.answer, "mask": self.counted}


def positions(mask: Tensor) -> Tensor:
    """Place of every token in its own text, so that padding on the left moves nothing."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def answer_logits(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a language model on :meth:`Sequences.batch`: ``logits[:, k]`` ``[B, A, V]`` are of answer token k.

    A causal model reads prompt and answer in one; the head is not run on the prompt where the model allows it
    (``logits_to_keep`` of transformers). An encoder-decoder's encoder reads the prompt, its decoder the answer.
    """
    if is_encoder_decoder(model):
        return {"logits": decoder_logits(model, batch)}
    count = batch["target"].shape[1]
    options: dict[str, Any] = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = count + 1
    logits = name_output(model(**batch["input"], **options))["logits"]
    # The last position predicts what would follow the answer.
    return {"logits": logits[:, -count - 1 : -1]}


def with_log_probs(forward: Forward) -> Forward:
    """The same run with ``log_probs`` ``[B, A]`` too: of the batch's own ``target``, 0 where its ``mask`` is False."""

    def run(model: nn.Module, batch: Batch) -> dict[str, Any]:
        signals = forward(model, batch)
        found = token_log_probs(dense(signals, "logits"), batch["target"], mask=batch.get("mask"))
        return {**signals, "log_probs": found}

    run.__qualname__ = f"{forward.__qualname__}[log_probs]"
    return run


def answer_hidden(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the head of a causal model is given, for every answer token: ``hidden`` ``[B, A, width]``.

    Behind the last normalisation; the head itself does not run. :func:`check_head` tells whether that is all that a
    model does before its head.
    """
    trunk = getattr(model, "base_model", model)
    states = None
    if trunk is not model:
        states = getattr(trunk(**batch["input"], use_cache=False), "last_hidden_state", None)
    if states is None:
        raise UserError("model", type(model).__name__, "a causal model of transformers, with a head on a base_model")
    return {"hidden": states[:, -batch["target"].shape[1] - 1 : -1]}


def answer_head(model: nn.Module, batch: Batch) -> dict[str, HeadLogits]:
    """:func:`answer_logits` that are not multiplied out: losses that can work on a chunk of rows at a time.

    As ``forward`` of a student and of a ``Live`` teacher it makes the memory of their comparison flat in the size of
    the vocabulary.
    """
    return {"logits": OutputHead.of(model)(answer_hidden(model, batch)["hidden"])}


def check_head(model: nn.Module, batch: Batch, head: OutputHead | None = None, *, tolerance: float = 1e-4) -> float:
    """Largest difference of a model's own logits and those of its hidden states through ``head``, on one batch.

    Raises:
        UserError: it is above ``tolerance`` times the largest logit: the model does something at its head that is
            not known here, or the head is another model's.
    """
    with torch.no_grad():
        whole = answer_logits(model, batch)["logits"].float()
        ours = (head or OutputHead.of(model))(answer_hidden(model, batch)["hidden"]).to_dense().float()
    mask = batch["mask"]
    worst = float((ours - whole).abs()[mask].max()) if bool(mask.any()) else 0.0
    if not worst <= tolerance * max(1.0, float(whole[mask].abs().max()) if bool(mask.any()) else 1.0):
        raise UserError("head", f"logits that differ by {worst:.3g} from the model's", "the model's own head")
    return worst


def left_aligned(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens moved to the right end of their rows in their order, and columns of padding alone cut off."""
    order = mask.int().argsort(dim=1, stable=True)
    moved = mask.gather(1, order)
    first = int(moved.any(0).int().argmax())
    return ids.gather(1, order)[:, first:], moved[:, first:]


def chosen_place(mask: Tensor, views: Tensor, draw: int) -> Tensor:
    """One of the True places of every row ``[B, A]``, drawn by the row's view; 0 where there is none."""
    count = mask.sum(1)
    wanted = (uniform(views, draw) * count).long().clamp_max((count - 1).clamp_min(0))
    return ((mask.long().cumsum(1) - 1 == wanted[:, None]) & mask).int().argmax(1)


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        if len(row):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[index, place] = torch.as_tensor(row, dtype=torch.int64)
            mask[index, place] = True
    return ids, mask
