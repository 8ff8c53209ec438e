"""The output head of a causal language model out of its folder, without the rest of the network."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import torch

from limbeck.errors import UserError, first_line, require
from limbeck.models.hf_networks import EXTRA, quiet
from limbeck.nn.output_head import OutputHead, head_settings

HEADS = ("lm_head", "embed_out", "output_layer")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_INDEX = "model.safetensors.index.json"


def read_head(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> OutputHead:
    """The frozen head of a transformers folder: the output matrix, or the embedding that is tied to it.

    Two or three tensors are read; the network is never built. Scale and cap come from the configuration
    (:func:`~limbeck.nn.output_head.head_settings`).

    Args:
        folder: with ``config.json`` and ``*.safetensors``.
        dtype: of the head in memory; a teacher runs in float32 here unless it is asked for otherwise.

    Raises:
        UserError: no such folder, or no tensor or several that could be the head.
    """
    folder = Path(folder).expanduser()
    transformers = require("transformers", EXTRA)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        hint = first_line(error)
        raise UserError("folder", str(folder), "a folder of transformers with config.json", hint) from error
    places = _places(folder)
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", True))
    # Where weights are tied transformers puts the embedding in the head's place, whatever else the file holds.
    weights, others = [_named(places, names) for names in ((EMBEDDINGS, HEADS) if tied else (HEADS, EMBEDDINGS))]
    chosen = weights or (others if tied else [])
    if len(chosen) != 1:
        given = f"{len(chosen)} tensors that could be the head ({', '.join(chosen[:5]) or 'none'})"
        wanted = [f"*.{name}.weight" for name in (EMBEDDINGS if tied else HEADS)]
        raise UserError("folder", given, "one of " + ", ".join(wanted), "take OutputHead.of(model) instead")
    weight = _read(places, folder, chosen[0]).to(dtype)
    vocabulary = int(config.get_text_config().vocab_size)
    if weight.dim() != 2 or len(weight) != vocabulary:
        raise UserError(chosen[0], list(weight.shape), f"[{vocabulary}, width], by the configuration's vocab_size")
    bias = next((f"{name}.bias" for name in HEADS if f"{name}.bias" in places), None)
    scale, cap = head_settings(config)
    return OutputHead(weight, None if bias is None else _read(places, folder, bias).to(dtype), scale, cap)


def _places(folder: Path) -> dict[str, str]:
    """File of every tensor."""
    if (folder / _INDEX).is_file():
        return dict(json.loads((folder / _INDEX).read_text())["weight_map"])
    places = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            places.update(dict.fromkeys(file.keys(), path.name))
    if not places:
        raise UserError("folder", str(folder), "a folder with *.safetensors")
    return places


def _named(places: dict[str, str], modules: tuple[str, ...]) -> list[str]:
    return [name for name in sorted(places) if name.endswith(".weight") and name.split(".")[-2] in modules]


def _read(places: dict[str, str], folder: Path, name: str) -> torch.Tensor:
    with safetensors.safe_open(folder / places[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
