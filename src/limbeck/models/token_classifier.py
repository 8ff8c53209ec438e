"""A score for every word of a text, from any encoder of transformers with a two-class token head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.word_labels import sub_words, word_table
from limbeck.errors import UserError, require
from limbeck.models.pairs import body_of, transfer_body
from limbeck.models.sentence import EXTRA, longest, no_bars
from limbeck.nn.mode import evaluating
from limbeck.nn.transfer import keep_layers

MERGES = ("mean", "first")


class TokenClassifier(nn.Module):
    """``{"logits": [B, L, 2]}``; the probability of class 1 is the probability to keep.

    Args:
        classifier: what ``AutoModelForTokenClassification`` gives, with two labels. Released checkpoints of LLMLingua-2
            are such networks.
        tokenizer: its tokenizer; only :meth:`word_scores` and :meth:`save_pretrained` need it.
        max_length: longest piece of a text in tokens, special tokens included; longer texts are read in pieces.
    """

    def __init__(self, classifier: nn.Module, tokenizer: Any = None, *, max_length: int | None = None) -> None:
        super().__init__()
        labels = getattr(getattr(classifier, "config", None), "num_labels", None)
        if labels != 2:
            raise UserError("num_labels of the classifier", labels, "2: drop, keep")
        limit = longest(classifier, tokenizer)
        if max_length is not None and not 3 <= max_length <= limit:
            raise UserError("max_length", max_length, f"3 to {limit}, the positions of the transformer")
        self.classifier, self.tokenizer, self.max_length = classifier, tokenizer, max_length or limit

    @classmethod
    def on(
        cls,
        body: nn.Module,
        tokenizer: Any = None,
        *,
        layers: Sequence[int] | None = None,
        causal: bool = False,
        max_length: int | None = None,
    ) -> TokenClassifier:
        """A classifier with the body of another network and a fresh head, drawn from the global generator.

        Args:
            body: a :class:`~limbeck.models.sentence.SentenceEncoder` or a transformers network.
            tokenizer: by default the body's own.
            layers: numbers of the body's layers that stay; all by default.
            causal: a token sees only what stands before it (the "unidirectional" ablation; BERT's kind only).
        """
        given = getattr(body, "tokenizer", None) if tokenizer is None else tokenizer
        source = body_of(body)
        config = copy.deepcopy(source.config)
        config.num_labels = 2
        if causal:
            if not hasattr(config, "is_decoder"):
                raise UserError(
                    "causal", type(source).__name__, "a network of BERT's kind, whose config has is_decoder"
                )
            config.is_decoder, config.use_cache = True, False
        made = require("transformers", EXTRA).AutoModelForTokenClassification.from_config(config)
        transfer_body(source, made)
        if layers is not None:
            made = keep_layers(made, layers)
        return cls(made, given, max_length=max_length)

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int | None = None) -> TokenClassifier:
        """Open a local folder; nothing is fetched and no code is run."""
        transformers = require("transformers", EXTRA)
        local = {"local_files_only": True, "trust_remote_code": False}
        with no_bars():
            model = transformers.AutoModelForTokenClassification.from_pretrained(path, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
        return cls(model.eval(), tokenizer, max_length=max_length).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of tokens ``[B, L]``."""
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"logits": logits}

    def word_scores(
        self,
        texts: Sequence[Sequence[str]],
        *,
        merge: str = "mean",
        ends: Sequence[str] = (".", "\n"),
        batch_size: int = 64,
    ) -> list[Tensor]:
        """The probability to keep of every word of ``texts`` (each as its words): per text a tensor ``[words]``.

        Args:
            merge: of a word's sub-words: their mean, or the first.
            ends: words behind which a long text may be cut; without one in reach it is cut at the limit.
        """
        if merge not in MERGES:
            raise UserError("merge", merge, MERGES)
        pieces = [(number, piece) for number, words in enumerate(texts) for piece in self.pieces(words, ends)]
        found: list[list[Tensor]] = [[] for _ in texts]
        scored: dict[int, Tensor] = {}
        order = sorted(range(len(pieces)), key=lambda place: -len(pieces[place][1]))
        device = next(self.parameters()).device
        with evaluating(self), torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                table = word_table(self.tokenizer, [pieces[row][1] for row in rows], max_length=self.max_length)
                logits = self(table.input_ids.to(device), table.attention_mask.to(device))["logits"]
                kept = logits.float().softmax(-1)[..., 1].cpu()
                for row, values, word in zip(rows, kept, table.word):
                    scored[row] = merged(values, word, len(pieces[row][1]), merge)
        for place, (number, _) in enumerate(pieces):
            found[number].append(scored[place])
        return [torch.cat(parts) if parts else torch.zeros(0) for parts in found]

    def pieces(self, words: Sequence[str], ends: Sequence[str] = (".", "\n")) -> list[list[str]]:
        """A text's words in runs of at most ``max_length - 2`` sub-words, cut behind the last of ``ends`` if any."""
        if self.tokenizer is None:
            raise UserError("tokenizer", "None", "the tokenizer of the transformer, given when the network is made")
        known = sub_words(self.tokenizer, set(words))
        sizes = [len(known[word]) for word in words]
        found, start = [], 0
        while start < len(words):
            stop, total = start, 0
            while stop < len(words) and (stop == start or total + sizes[stop] <= self.max_length - 2):
                total += sizes[stop]
                stop += 1
            if stop < len(words):
                last = next((place for place in range(stop - 1, start - 1, -1) if words[place] in ends), stop - 1)
                stop = last + 1
            found.append(list(words[start:stop]))
            start = stop
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``AutoModelForTokenClassification`` and ``AutoTokenizer`` open."""
        with no_bars():
            self.classifier.save_pretrained(folder)  # type: ignore[operator]
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def merged(values: Tensor, word: Tensor, count: int, merge: str = "mean") -> Tensor:
    """Values of sub-words ``[L]`` as values of words ``[count]``: the mean, or the first sub-word's.

    Args:
        word: number of each sub-word's word, -1 for none. A word whose sub-words were all cut has value 0.
    """
    inside = word >= 0
    word, values = word[inside], values[inside].float()
    if merge == "first":
        # The last writer wins, so the first sub-word is written last.
        return torch.zeros(count).scatter(0, word.flip(0), values.flip(0))
    sums = torch.zeros(count).index_add(0, word, values)
    return sums / torch.zeros(count).index_add(0, word, torch.ones_like(values)).clamp_min(1)
