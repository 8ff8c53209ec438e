"""GGUF files as folders of transformers: dequantised once, then opened like any other network (``hf:FOLDER``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.data.store import cache_folder, file_sha256, locked, written_aside
from limbeck.errors import UserError, require
from limbeck.models.hf_networks import EXTRA, quiet

# Raised whenever a file would be unpacked into something else.
_VERSION = 2


def unpacked_gguf(folder: Path) -> Path:
    """A folder with config, float32 weights and tokenizer of the one ``*.gguf`` file in ``folder``; made once.

    Needs the package ``gguf`` the first time. Weights are what the file's blocks stand for, so a 4-bit model stays the
    4-bit model that it is; the folder is eight times as large as the file. transformers forgets that SmolLM's tokenizer
    takes digits one by one before it looks for words (``tokenizer.ggml.pre``), which parts line ends otherwise; here it
    does so again.

    Raises:
        UserError: there is not exactly one such file. MissingExtra: ``gguf`` is not installed.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise UserError("folder", f"{len(files)} GGUF files", "a folder with one *.gguf file")
    made = cache_folder("unpacked") / f"{files[0].stem}-{file_sha256(files[0])[:16]}-{_VERSION}"
    with locked(made.name):
        if not (made / "config.json").is_file():
            transformers = require("transformers", EXTRA)
            gguf = require("gguf", EXTRA)
            with quiet(), written_aside(made) as aside:
                given = {"gguf_file": files[0].name, "local_files_only": True}
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
                # transformers saves no model that came quantised, so its weights go into a plain one.
                settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
                plain = type(model)(type(model.config)(**settings))
                plain.load_state_dict(model.state_dict())
                plain.save_pretrained(aside)
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
                kind = gguf.GGUFReader(files[0]).get_field("tokenizer.ggml.pre")
                if kind is not None and kind.contents() == "smollm":
                    _digits_first(tokenizer)
                tokenizer.save_pretrained(aside)
    return made


def _digits_first(tokenizer: Any) -> None:
    """Take digits one by one before words are looked for."""
    before = require("tokenizers", EXTRA).pre_tokenizers
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = before.Sequence([before.Digits(individual_digits=True), backend.pre_tokenizer])
