"""Sentence encoders: a transformer, pooling and normalisation, in the layout of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError, require
from limbeck.nn.mode import evaluating

EXTRA = "language"
POOLINGS = ("mean", "cls")
LIBRARY = "sentence_transformers.models."


class SentenceEncoder(nn.Module):
    """Texts to vectors: ``{"embedding": [B, D], "last_hidden_state": [B, L, D]}``.

    Args:
        transformer: a transformers encoder; its layers can be cut or tapped as ``transformer.encoder.layer``.
        tokenizer: its tokenizer; only :meth:`tokenize`, :meth:`encode` and :meth:`save_pretrained` need it.
        pooling: ``"mean"`` over the tokens that count, or ``"cls"``, the first of them.
        normalize: scale embeddings to length 1.
        max_length: longest text in tokens; longer ones are cut. By default what tokenizer and positions
            allow.

    A token that the mask leaves out never reaches the embedding, whatever stands there.
    """

    def __init__(
        self,
        transformer: nn.Module,
        tokenizer: Any = None,
        *,
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError("pooling", pooling, POOLINGS)
        limit = longest(transformer, tokenizer)
        if max_length is not None and not 1 <= max_length <= limit:
            raise UserError("max_length", max_length, f"1 to {limit}, the positions of the transformer")
        self.transformer, self.tokenizer = transformer, tokenizer
        self.pooling, self.normalize, self.max_length = pooling, normalize, max_length or limit

    @classmethod
    def from_folder(
        cls, path: str | Path, *, pooling: str | None = None, normalize: bool | None = None, **options: Any
    ) -> SentenceEncoder:
        """Open a local folder of sentence-transformers or transformers; nothing is fetched and no code is
        run.

        Args:
            path: the folder. Its ``modules.json`` and pooling configuration are followed; a plain
                transformers folder gets what sentence-transformers would give it, the mean without
                normalisation.
            pooling, normalize: overrule what the folder says.
            options: go to ``AutoModel.from_pretrained``, such as ``dtype`` or ``attn_implementation``.
        """
        transformers = require("transformers", EXTRA)
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise UserError("sentence encoder", str(path), "a folder that holds a transformers config.json")
        found = _layout(folder)
        with no_bars():
            transformer = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        limit = found["max_length"]
        return cls(
            transformer.eval(),
            tokenizer,
            pooling=found["pooling"] if pooling is None else pooling,
            normalize=found["normalize"] if normalize is None else normalize,
            max_length=None if limit is None else min(limit, longest(transformer, tokenizer)),
        ).eval()

    @property
    def width(self) -> int:
        """Size of an embedding."""
        return int(self.transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.transformer.parameters()).device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embeddings of tokens ``[B, L]``; without a mask every token counts."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        hidden = self.transformer(**given).last_hidden_state
        embedding = pool(hidden, attention_mask, self.pooling)
        if self.normalize:
            embedding = functional.normalize(embedding, dim=-1)
        return {"embedding": embedding, "last_hidden_state": hidden}

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> dict[str, Tensor]:
        """Token tensors ``[B, L]`` of ``texts``, cut to ``max_length`` and padded to the longest of them."""
        return self._pad(self._tokens(texts, max_length))

    def encode(self, texts: Sequence[str], batch_size: int = 64, max_length: int | None = None) -> Tensor:
        """Embeddings ``[len(texts), D]`` on the CPU in float32, in the order of ``texts``.

        Texts of like length share a batch, so that little padding is computed; the network runs in evaluation
        mode and without gradients, and is left in the mode it was in.
        """
        if batch_size < 1:
            raise UserError("batch_size", batch_size, "at least 1")
        embeddings = torch.empty(len(texts), self.width)
        if len(texts) == 0:
            return embeddings
        tokens = self._tokens(texts, max_length)
        lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
        order = lengths.argsort(descending=True, stable=True)
        with evaluating(self):
            for rows in torch.split(order, batch_size):
                inputs = self._pad({name: [column[row] for row in rows.tolist()] for name, column in tokens.items()})
                with torch.inference_mode():
                    found = self(**{name: value.to(self.device) for name, value in inputs.items()})["embedding"]
                embeddings[rows] = found.float().cpu()
        return embeddings

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``AutoModel.from_pretrained`` and ``SentenceTransformer`` both open."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with no_bars():
            self.transformer.save_pretrained(target)  # type: ignore[operator]
        self._need_tokenizer().save_pretrained(target)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        if self.normalize:
            modules.append(("2_Normalize", "Normalize"))
        _write(
            target / "modules.json",
            [
                {"idx": index, "name": str(index), "path": path, "type": LIBRARY + name}
                for index, (path, name) in enumerate(modules)
            ],
        )
        _write(target / "sentence_bert_config.json", {"max_seq_length": self.max_length, "do_lower_case": False})
        pooling = {
            "word_embedding_dimension": self.width,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        for path, _ in modules[1:]:
            (target / path).mkdir(exist_ok=True)
        _write(target / "1_Pooling" / "config.json", pooling)
        if self.normalize:
            _write(target / "2_Normalize" / "config.json", {})

    def _tokens(self, texts: Sequence[str], max_length: int | None) -> dict[str, list[list[int]]]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("texts", type(texts).__name__, "a sequence of strings")
        if max_length is not None and not 1 <= max_length <= self.max_length:
            raise UserError("max_length", max_length, f"1 to {self.max_length}")
        found = self._need_tokenizer()(
            list(texts), truncation=True, max_length=max_length or self.max_length, padding=False
        )
        wanted = ("input_ids", "attention_mask", "token_type_ids")
        return {name: found[name] for name in wanted if name in found}

    def _pad(self, tokens: Mapping[str, list[list[int]]]) -> dict[str, Tensor]:
        return dict(self._need_tokenizer().pad(dict(tokens), return_tensors="pt"))

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UserError("tokenizer", "None", "the tokenizer of the transformer, given when the encoder is made")
        return self.tokenizer


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector ``[B, D]`` of states ``[B, L, D]`` where ``mask`` ``[B, L]`` is not 0, or zeros."""
    counts = mask.unsqueeze(-1) != 0
    if pooling == "cls":
        # The first token that counts, not column 0, which is padding when padding is on the left.
        first = mask.ne(0).to(torch.int64).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), first]
    kept = torch.where(counts, hidden, torch.zeros_like(hidden))
    return kept.sum(dim=1) / counts.sum(dim=1).clamp(min=1).to(hidden.dtype)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would break into ours."""
    logging = require("transformers.utils.logging", EXTRA)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _layout(folder: Path) -> dict[str, Any]:
    """Pooling, normalisation and length of a folder, or an error about the module that cannot be followed."""
    found: dict[str, Any] = {"pooling": "mean", "normalize": False, "max_length": None}
    for name in (
        "sentence_bert_config.json",
        "sentence_roberta_config.json",
        "sentence_xlm-roberta_config.json",
    ):
        if (folder / name).is_file():
            found["max_length"] = _read(folder / name).get("max_seq_length")
            break
    if not (folder / "modules.json").is_file():
        return found
    for module in _read(folder / "modules.json"):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            found["pooling"] = _pooling(_read(folder / module["path"] / "config.json"))
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer" or module["path"] not in ("", "."):
            raise UserError("module of the sentence encoder", kind, ["Transformer", "Pooling", "Normalize"])
    return found


def _pooling(config: Mapping[str, Any]) -> str:
    """The pooling that a configuration names, in the old form of flags or the new one of a word."""
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        modes = [mode] if isinstance(mode, str) else list(mode)
    else:
        words = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        modes = [words.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError("pooling of the sentence encoder", " + ".join(modes) or "none", POOLINGS)
    return str(modes[0])


def longest(transformer: nn.Module, tokenizer: Any) -> int:
    """Tokens that positions and tokenizer allow."""
    config = getattr(transformer, "config", None)
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    # RoBERTa numbers its positions from behind the padding index.
    if positions and "roberta" in str(getattr(config, "model_type", "")):
        positions -= int(getattr(config, "pad_token_id", 1) or 0) + 1
    limits = [limit for limit in (positions, int(getattr(tokenizer, "model_max_length", 0) or 0)) if limit > 0]
    return min([*limits, 1 << 20]) if limits else 512


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("sentence encoder", str(path), "a readable JSON file", str(error)) from error


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
