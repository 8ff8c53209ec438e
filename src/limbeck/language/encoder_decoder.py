"""How an encoder-decoder reads prompts and answers: the encoder gets the prompt, the decoder the answer one place on.

A causal teacher reads ``[left padding, x_1 .. x_n, y_1 .. y_T]`` and says y_1 at the last token of x, column S - 1, for
every row, since prompts are padded on the left. An encoder-decoder's decoder reads ``[start, y_1 .. y_{T-1}]`` and says
y_1 at column 0. :func:`limbeck.language.answer_logits` gives both as ``[B, T, V]``, so teacher and student of either
kind are compared token by token. The two need one tokenizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.signals import Batch


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a transformers model has an encoder for the prompt."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def start_token(model: nn.Module) -> int:
    """The token that a decoder begins with, by the model's configuration."""
    config: Any = model.config
    places = (config, getattr(model, "generation_config", None), getattr(config, "decoder", None))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for place in places:
            found = getattr(place, name, None)
            if isinstance(found, int):
                return found
    raise UserError("model", type(model).__name__, "a configuration with decoder_start_token_id")


def decoder_logits(model: nn.Module, batch: Batch) -> Tensor:
    """``[B, A, V]``: of every answer token of :meth:`limbeck.language.Sequences.batch`, by an encoder-decoder."""
    answer = batch["target"]
    given, count = batch["input"], answer.shape[1]
    mask = given["attention_mask"]
    begin = answer.new_full((len(answer), 1), start_token(model))
    present = torch.cat([torch.ones_like(mask[:, :1]), mask[:, -count:]], 1)[:, :count]
    found = model(
        **encoder_input(model, given["input_ids"][:, :-count], mask[:, :-count]),
        decoder_input_ids=torch.cat([begin, answer], 1)[:, :count], decoder_attention_mask=present, use_cache=False,
    )  # fmt: skip
    logits: Tensor = found.logits
    return logits


def encoder_input(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What the encoder is given. Its positions are centred around 0 where the model takes them (published).

    Rotary attention sees differences of positions alone, so neither the centre nor padding on the left changes an
    answer; the angles are smaller, and so are their rounding errors.
    """
    found = {"input_ids": ids, "attention_mask": mask.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        place = mask.long().cumsum(1) - 1
        found["position_ids"] = torch.where(mask.bool(), place - mask.long().sum(1, keepdim=True) // 2, 0)
    return found


class Decoder:
    """An encoder-decoder that has read its prompts and writes token by token.

    The encoder runs once. Keys and values of the decoder's own tokens are kept, and those of the encoder's states,
    which every layer's cross-attention makes at the first token.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor) -> None:
        self.model: Any = model
        given = encoder_input(model, ids, mask)
        self.mask = given["attention_mask"]
        encoder = cast(Callable[[], Callable[..., Any]], model.get_encoder)()
        self.states = encoder(**given)
        self.cache: Any = None
        self.start = ids.new_full((len(ids), 1), start_token(model))

    def __call__(self, ids: Tensor | None = None) -> Tensor:
        """Logits ``[B, V]`` of the next token, behind ``ids`` ``[B, 1]``; of the first one without."""
        found = self.model(
            encoder_outputs=self.states, attention_mask=self.mask,
            decoder_input_ids=self.start if ids is None else ids, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.cache = found.past_key_values
        logits: Tensor = found.logits[:, -1]
        return logits
