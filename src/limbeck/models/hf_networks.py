"""Networks of transformers as :class:`~limbeck.models.network.Network`: prepared, run and saved their own way."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError, require
from limbeck.models.chat_input import ChatInput
from limbeck.models.hf_images import read_image_format, write_image_format
from limbeck.models.network import (
    USUAL_LENGTH,
    Network,
    TextInput,
    describe_images,
    image_format_of,
    next_token_logits,
    next_token_targets,
)  # fmt: skip
from limbeck.models.sentence import SentenceEncoder
from limbeck.nn.mode import evaluating
from limbeck.signals import Batch, run_network

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

EXTRA = "language"


def text_network(module: nn.Module, task: str, tokenizer: Any, max_length: int | None = None) -> Network:
    """A :class:`Network` around a transformers model that reads text."""
    config: Any = module.config
    if getattr(config, "pad_token_id", None) is None:
        # Sequence classifiers of decoders find the end of a text by it.
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    kind = ChatInput if task == "causal-lm" else TextInput
    prepare = kind(tokenizer, text_length(config, tokenizer, max_length), _inputs(module, tokenizer))
    rows = getattr(config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise UserError("tokenizer", f"{len(tokenizer)} tokens", f"at most the network's {rows} embedding rows")
    causal = task == "causal-lm"
    return Network(
        module,
        next_token_logits if causal else run_network,
        "text",
        task,
        prepare,
        prepare.describe(),
        saver=TextSaver(tokenizer),
        tokenizer=tokenizer,
        targets=next_token_targets if causal else None,
    )


def image_network(module: nn.Module, task: str, folder: Path | None, wanted: Wanted) -> Network:
    """A :class:`Network` around a transformers model that reads images."""
    config: Any = module.config
    found = read_image_format(folder, wanted.key) if folder is not None else None
    notes = []
    if found is None:
        found = image_format_of(wanted.teacher)
        if found is None:
            raise UserError(
                wanted.key, wanted.reference, "a folder with preprocessor_config.json",
                "without it nobody knows the size and scale of the images it was trained on",
            )  # fmt: skip
        notes.append("no preprocessor_config.json: images are prepared as for the teacher")
    return Network(
        module,
        embed_images if task in ("embedding", "features") else run_network,
        "image",
        task,
        found,
        describe_images(found),
        saver=ImageSaver(found),
        width=int(config.hidden_sizes[-1])
        if getattr(config, "hidden_sizes", None)
        else getattr(config, "hidden_size", None),
        notes=notes,
    )


def encoder_network(encoder: SentenceEncoder) -> Network:
    """A :class:`Network` around a sentence encoder."""
    tokenizer = encoder.tokenizer
    prepare = TextInput(tokenizer, encoder.max_length, _inputs(encoder.transformer, tokenizer, encoder))
    return Network(
        encoder, run_network, "text", "embedding", prepare, prepare.describe(), saver=save_encoder,
        tokenizer=tokenizer, width=encoder.width,
    )  # fmt: skip


def embed_images(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Signals of an image backbone, with ``embedding`` ``[B, D]``: its pooled output, or else the mean over places."""
    signals = run_network(model, {"input": {"pixel_values": batch["input"]}})
    hidden, pooled = signals["last_hidden_state"], signals.get("pooler_output")
    if pooled is None:
        pooled = hidden.flatten(2).mean(-1) if hidden.dim() == 4 else hidden.mean(1)
    return {**signals, "embedding": pooled.flatten(1)}


class TextSaver:
    """Writes a transformers model with its tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, module: nn.Module, folder: Path) -> None:
        with quiet():
            module.save_pretrained(folder)  # type: ignore[operator]
            self.tokenizer.save_pretrained(folder)


class ImageSaver:
    """Writes a transformers model with the configuration of its image processor."""

    def __init__(self, image_format: Any) -> None:
        self.image_format = image_format

    def __call__(self, module: nn.Module, folder: Path) -> None:
        with quiet():
            module.save_pretrained(folder)  # type: ignore[operator]
        write_image_format(self.image_format, folder)


def save_encoder(module: nn.Module, folder: Path) -> None:
    """Write a sentence encoder in the layout of sentence-transformers."""
    with quiet():
        module.save_pretrained(folder)  # type: ignore[operator]


def text_length(config: Any, tokenizer: Any, asked: int | None) -> int:
    """Longest text in tokens: what positions and tokenizer allow, and no more than is usual unless asked for."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    # RoBERTa numbers its positions from behind the padding index.
    if positions and "roberta" in str(getattr(config, "model_type", "")):
        positions -= int(getattr(config, "pad_token_id", 1) or 0) + 1
    limits = [limit for limit in (positions, int(tokenizer.model_max_length or 0)) if limit > 0]
    longest = min([*limits, 1 << 20])
    if asked is not None and asked > longest:
        raise UserError("max_length", asked, f"1 to {longest}")
    return asked or min(longest, USUAL_LENGTH)


def refuse_two_way(module: nn.Module, key: str, reference: str) -> None:
    """Make sure that a language model does not see the tokens that it is to predict.

    Raises:
        UserError: another last token changes what the model says before it.
    """
    rows = int(module.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]) % rows
    with evaluating(module), torch.no_grad():
        first, second = module(input_ids=ids).logits[:, 0]
    if not torch.allclose(first, second, atol=1e-5):
        hint = "this one sees the tokens behind a place as well as those before it"
        raise UserError(key, reference, "a causal language model", hint)


def _inputs(module: nn.Module, tokenizer: Any, outer: nn.Module | None = None) -> list[str]:
    taken = set(inspect.signature(module.forward).parameters)
    if outer is not None:
        taken &= set(inspect.signature(outer.forward).parameters)
    names = [
        "input_ids",
        "attention_mask",
        *(n for n in tokenizer.model_input_names if n == "token_type_ids"),
    ]
    return [name for name in names if name in taken]


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines and bars of transformers: what matters comes back as a note or an error."""
    logging = require("transformers", EXTRA).utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
