"""``slice:`` and ``width:``: students cut out of their teacher, some of its layers or a narrower copy of all."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.errors import UserError, first_line
from limbeck.models.importance import MEASURES, block_importance, important_layers
from limbeck.models.network import Network, parse_options, probe
from limbeck.models.sentence import SentenceEncoder
from limbeck.nn.depth import RULES, kept_layers
from limbeck.nn.transfer import keep_layers, slice_width
from limbeck.taps import blocks

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

_LAYERS = "layers=0,2,5, layers=even:3 (or first:, last:), layers=important:3 (by influence) or important:3:loss"
_FEED_FORWARD = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim")


def read_slice(wanted: Wanted) -> Network:
    """Some layers of the teacher, with all that stands before and behind them."""
    teacher = _teacher(wanted)
    name, options = parse_options(wanted.rest, wanted.key, wanted.reference)
    if name or set(options) != {"layers"}:
        raise UserError(wanted.key, wanted.reference, f"slice: with {_LAYERS}")
    return _cut(teacher, options["layers"], wanted)


def read_width(wanted: Wanted) -> Network:
    """A copy of a transformers teacher with narrower layers, started from slices of the wide weights."""
    teacher = _teacher(wanted)
    name, options = parse_options(wanted.rest, wanted.key, wanted.reference)
    layers = options.pop("layers", None)
    inner = teacher.module.transformer if isinstance(teacher.module, SentenceEncoder) else teacher.module
    config = getattr(inner, "config", None)
    if config is None or not hasattr(config, "hidden_size") or not hasattr(config, "to_dict"):
        hint = "use slice:layers=... for this teacher"
        raise UserError(wanted.key, wanted.reference, "a teacher of transformers with a hidden_size", hint)
    if name or "hidden_size" not in options:
        raise UserError(
            wanted.key,
            wanted.reference,
            "width:hidden_size=NUMBER[,intermediate_size=...,num_attention_heads=...]",
        )
    narrow = _narrow_config(config, {key: _number(key, value, wanted) for key, value in options.items()}, wanted)
    small: nn.Module = slice_width(inner, type(inner)(narrow))
    if getattr(inner, "generation_config", None) is not None:
        small.generation_config = copy.deepcopy(inner.generation_config)
    if isinstance(teacher.module, SentenceEncoder):
        whole = teacher.module
        small = SentenceEncoder(
            small,
            whole.tokenizer,
            pooling=whole.pooling,
            normalize=whole.normalize,
            max_length=whole.max_length,
        )
    width = int(narrow.hidden_size) if teacher.width is not None else None
    student = replace(
        teacher,
        module=small.eval(),
        width=width,
        notes=[f"every layer {narrow.hidden_size} of {config.hidden_size} wide"],
    )
    return _cut(student, layers, wanted) if layers is not None else student


def chosen_layers(text: str, depth: int, key: str = "student") -> list[int]:
    """``0,2,5``, ``even:3``, ``first:2`` or ``last:2`` to layer numbers of a stack of ``depth``."""
    spread = re.fullmatch(r"(\w+):(\d+)", text)
    if spread and spread[1] in RULES:
        if not 1 <= int(spread[2]) <= depth:
            raise UserError(f"{key} layers", text, f"1 to {depth} layers")
        return kept_layers(spread[1], int(spread[2]), depth)
    try:
        layers = [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{key} layers", text, _LAYERS) from None
    if any(not -depth <= number < depth for number in layers):
        raise UserError(f"{key} layers", text, f"numbers from 0 to {depth - 1}, the layers of the teacher")
    return layers


def _teacher(wanted: Wanted) -> Network:
    if wanted.teacher is None:
        raise UserError(wanted.key, wanted.reference, "a teacher to cut the student out of")
    if isinstance(wanted.teacher.module, torch.fx.GraphModule) or wanted.teacher.saver is None:
        hint = "an exported graph has no layers to choose from"
        raise UserError(wanted.key, wanted.reference, "a teacher of hf:, timm: or py:", hint)
    return wanted.teacher


def _cut(teacher: Network, layers: str, wanted: Wanted) -> Network:
    try:
        path, stack = blocks(teacher.module)
    except UserError as error:
        raise UserError(wanted.key, wanted.reference, "a teacher with a stack of like blocks") from error
    chosen, why = _chosen(teacher, layers, len(stack), wanted)
    # The blocks keep their settings, so what the teacher prepares and returns fits the student.
    module = keep_layers(teacher.module, chosen).eval().requires_grad_(True)
    _refuse_misfit(replace(teacher, module=module), f"{layers} of {path}", wanted)
    note = f"layers {', '.join(map(str, chosen))} of the teacher's {len(stack)} in {path}"
    return replace(teacher, module=module, labels=copy.copy(teacher.labels), notes=[*teacher.notes, note, *why])


def _chosen(teacher: Network, layers: str, depth: int, wanted: Wanted) -> tuple[list[int], list[str]]:
    """Layer numbers, and where they were measured what was found."""
    rule, _, rest = layers.partition(":")
    if rule != "important":
        return chosen_layers(layers, depth, wanted.key), []
    count, _, measure = rest.partition(":")
    measure = measure or MEASURES[0]
    if not count.isdigit() or not 1 <= int(count) <= depth or measure not in MEASURES:
        allowed = f"important:COUNT or important:COUNT:loss, COUNT from 1 to {depth}"
        raise UserError(f"{wanted.key} layers", layers, allowed)
    if wanted.samples is None:
        raise UserError(
            f"{wanted.key} layers", layers, "a rule that needs no data", "there are no samples to measure on"
        )
    scores = block_importance(teacher, wanted.samples, measure)
    shown = ", ".join(f"{place}: {score:.3g}" for place, score in enumerate(scores))
    what = "1 - cos(input, output)" if measure == "influence" else "rise of the loss without the block, nats"
    return important_layers(scores, int(count)), [f"importance of its layers on training samples ({what}) {shown}"]


def _refuse_misfit(student: Network, given: str, wanted: Wanted) -> None:
    """Run the student once: the stages of a convolutional network look alike and yet do not fit each other."""
    try:
        probe(student, wanted.sample)
    except RuntimeError as error:
        raise UserError(
            f"{wanted.key} layers", given, "layers that fit each other in width and size", first_line(error)
        ) from error


def _narrow_config(config: Any, options: dict[str, int], wanted: Wanted) -> Any:
    known = [key for key in config.to_dict() if isinstance(config.to_dict()[key], int)]
    for key in options:
        if not hasattr(config, key):
            raise UserError(f"{wanted.key} option", key, [*known, "hidden_size", "layers"])
    narrow = copy.deepcopy(config)
    old, new = int(config.hidden_size), options["hidden_size"]
    heads = options.get("num_attention_heads", int(config.num_attention_heads))
    even = 2 if getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None) else 1
    if not 0 < new <= old or heads < 1 or new % (heads * even):
        multiples = range(heads * even, old + 1, heads * even)
        shown = ", ".join(map(str, list(multiples)[-12:]))
        raise UserError(
            f"{wanted.key} hidden_size", new, f"a multiple of {heads * even} up to {old} ({shown})",
            f"or another number of heads, num_attention_heads=, than {heads}",
        )  # fmt: skip
    for key in _FEED_FORWARD:
        if isinstance(getattr(config, key, None), int) and key not in options:
            setattr(narrow, key, max(1, int(getattr(config, key)) * new // old))
    for key, value in options.items():
        setattr(narrow, key, value)
    if isinstance(getattr(config, "head_dim", None), int):
        narrow.head_dim = new // heads
    return narrow


def _number(key: str, value: str, wanted: Wanted) -> int:
    if not value.isdigit():
        raise UserError(f"{wanted.key} {key}", value, "a whole number")
    return int(value)
