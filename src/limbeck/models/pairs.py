"""Two ways for one transformer to score a sentence pair: two vectors and their cosine, or both sentences at once.

A pair is ``(first, second)``. The bi-encoder is a :class:`~limbeck.models.sentence.SentenceEncoder`, run on pairs by
:func:`pair_cosine`; the cross-encoder is :class:`CrossEncoder`. :func:`transfer_body` moves weights between the two.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.errors import UserError, require
from limbeck.models.sentence import EXTRA, SentenceEncoder, longest, no_bars
from limbeck.nn.mode import evaluating
from limbeck.nn.transfer import WeightTransfer
from limbeck.signals import Batch

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairCollate:
    """Pairs to tokens, for :class:`~limbeck.data.TensorLoader`.

    Attributes:
        tokenizer: of transformers.
        joined: both sentences in one row ``[B, L]``, for a cross-encoder; else ``[2 B, L]``, all first sentences and
            then all second ones, for a bi-encoder.
        max_length: longest row in tokens. Longer sentences are cut, of a joined pair the longer one first.
    """

    tokenizer: Any
    joined: bool
    max_length: int

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        options = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        tokens = self.tokenizer(first, second, **options) if self.joined else self.tokenizer(first + second, **options)
        return {name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokens}


def pair_cosine(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a sentence encoder on ``[2 B, L]`` tokens: ``score`` (the cosine ``[B]``), ``first``, ``second`` ``[B, D]``.

    A ``Forward``: give it to a distiller or a source in place of ``run_network``.
    """
    embedding = model(**batch["input"])["embedding"]
    if len(embedding) % 2:
        raise UserError("input", f"{len(embedding)} rows", "an even number: first sentences, then second ones")
    first, second = embedding.float().chunk(2)
    return {"score": (normalize(first, dim=-1) * normalize(second, dim=-1)).sum(-1), "first": first, "second": second}


class CrossEncoder(nn.Module):
    """Both sentences in one pass: ``{"logits": [B], "score": sigmoid(logits)}``.

    Args:
        classifier: a transformers sequence classifier with one label.
        tokenizer: its tokenizer; only :meth:`score` and :meth:`save_pretrained` need it.
        max_length: longest pair in tokens; by default what tokenizer and positions allow.

    What it saves opens with ``AutoModelForSequenceClassification`` and with sentence-transformers' ``CrossEncoder``.
    """

    def __init__(self, classifier: nn.Module, tokenizer: Any = None, *, max_length: int | None = None) -> None:
        super().__init__()
        labels = getattr(getattr(classifier, "config", None), "num_labels", None)
        if labels != 1:
            raise UserError("num_labels of the classifier", labels, "1, the score of a pair")
        limit = longest(classifier, tokenizer)
        if max_length is not None and not 1 <= max_length <= limit:
            raise UserError("max_length", max_length, f"1 to {limit}, the positions of the transformer")
        self.classifier, self.tokenizer, self.max_length = classifier, tokenizer, max_length or limit

    @classmethod
    def on(cls, body: nn.Module, tokenizer: Any = None, *, max_length: int | None = None) -> CrossEncoder:
        """A cross-encoder with the body of another network and a fresh head, drawn from the global generator.

        Args:
            body: a :class:`SentenceEncoder`, a :class:`CrossEncoder` or a transformers network.
            tokenizer: by default the body's own.
        """
        config = copy.deepcopy(body_of(body).config)
        config.num_labels = 1
        transformers = require("transformers", EXTRA)
        made = transformers.AutoModelForSequenceClassification.from_config(config)
        transfer_body(body, made)
        given = getattr(body, "tokenizer", None) if tokenizer is None else tokenizer
        return cls(made, given, max_length=max_length)

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int | None = None) -> CrossEncoder:
        """Open a local folder; nothing is fetched and no code is run."""
        transformers = require("transformers", EXTRA)
        local = {"local_files_only": True, "trust_remote_code": False}
        with no_bars():
            model = transformers.AutoModelForSequenceClassification.from_pretrained(path, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
        return cls(model.eval(), tokenizer, max_length=max_length).eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores of joined pairs ``[B, L]``."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.classifier(**{name: value for name, value in given.items() if value is not None})
        logits = output.logits.squeeze(-1)
        return {"logits": logits, "score": logits.float().sigmoid()}

    def collate(self) -> PairCollate:
        """Pairs to its tokens."""
        if self.tokenizer is None:
            raise UserError("tokenizer", "None", "the tokenizer of the transformer, given when the encoder is made")
        return PairCollate(self.tokenizer, True, self.max_length)

    def score(self, pairs: Sequence[Pair], batch_size: int = 64, *, both_orders: bool = False) -> Tensor:
        """Scores ``[len(pairs)]`` in (0, 1), on the CPU in float32.

        Args:
            both_orders: the mean of (first, second) and (second, first). A network that was trained on both orders is
                symmetric only in the mean over its training.
        """
        scores = _in_batches(self, self.collate(), pairs, batch_size)
        if not both_orders:
            return scores
        turned = _in_batches(self, self.collate(), [(b, a) for a, b in pairs], batch_size)
        return (scores + turned) / 2

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers and sentence-transformers both open."""
        collate = self.collate()
        with no_bars():
            self.classifier.save_pretrained(folder)  # type: ignore[operator]
        collate.tokenizer.save_pretrained(folder)


def pair_scores(model: nn.Module, pairs: Sequence[Pair], batch_size: int = 64) -> Tensor:
    """Scores ``[len(pairs)]`` of a bi-encoder (cosines) or a cross-encoder (sigmoids, in the order given)."""
    if isinstance(model, CrossEncoder):
        return model.score(pairs, batch_size)
    if isinstance(model, SentenceEncoder):
        # A sentence of many pairs is encoded once.
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        place = {text: row for row, text in enumerate(texts)}
        vectors = normalize(model.encode(texts, batch_size), dim=-1)
        first, second = (torch.tensor([place[pair[side]] for pair in pairs], dtype=torch.int64) for side in (0, 1))
        return (vectors[first] * vectors[second]).sum(-1)
    raise UserError("model", type(model).__name__, "a SentenceEncoder or a CrossEncoder")


def body_of(model: nn.Module) -> Any:
    """The transformer under pooling or head."""
    if isinstance(model, SentenceEncoder):
        return model.transformer
    if isinstance(model, CrossEncoder):
        model = model.classifier
    if not hasattr(model, "base_model"):
        raise UserError("body", type(model).__name__, "a SentenceEncoder, a CrossEncoder or a transformers network")
    return model.base_model


def transfer_body(source: nn.Module, target: nn.Module) -> None:
    """Copy the transformer of one network into another; pooling layer and head of the target stay as they are.

    Works in both directions between a bi-encoder and a cross-encoder, and from a pretrained language model to either.

    Raises:
        UserError: the bodies differ in kind or size.
    """

    def namesake(name: str) -> str | None:
        # transformers' pooling layer feeds a classifier: it belongs to the head, and many networks have none.
        return None if name.startswith("pooler.") else name

    WeightTransfer(body_of(source), body_of(target), names=namesake, buffers="keep")()


def with_body(like: SentenceEncoder, source: nn.Module) -> SentenceEncoder:
    """A copy of a sentence encoder (tokenizer, pooling, limits) with the body of ``source``."""
    tokenizer, like.tokenizer = like.tokenizer, None
    try:
        made = copy.deepcopy(like)
    finally:
        like.tokenizer = tokenizer
    made.tokenizer = tokenizer
    transfer_body(source, made)
    return made


def _in_batches(model: CrossEncoder, collate: PairCollate, pairs: Sequence[Pair], batch_size: int) -> Tensor:
    scores = torch.empty(len(pairs))
    if not pairs:
        return scores
    # Pairs of like length share a batch, so that little padding is computed.
    lengths = torch.tensor([len(first) + len(second) for first, second in pairs])
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for rows in torch.split(lengths.argsort(descending=True, stable=True), batch_size):
            tokens = collate([pairs[row] for row in rows.tolist()])
            scores[rows] = model(**{name: value.to(device) for name, value in tokens.items()})["score"].cpu()
    return scores
