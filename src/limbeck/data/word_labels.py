"""Words and their labels as sub-words: what a token classifier reads and is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.data.words import IGNORED
from limbeck.errors import UserError
from limbeck.signals import Batch


@dataclass(frozen=True)
class WordTable:
    """Texts as sub-words, ``[N, L]`` each.

    Attributes:
        input_ids, attention_mask: as transformers' models read them.
        word: number of the word that a sub-word belongs to; -1 for special tokens and padding.
        target: the label of that word; ``IGNORED`` (-100) for special tokens and padding, which no loss may count.
    """

    input_ids: Tensor
    attention_mask: Tensor
    word: Tensor
    target: Tensor

    def samples(self, first: int = 0) -> dict[str, Any]:
        """What :class:`~limbeck.data.TensorLoader` takes; ids count from ``first``."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {"input": inputs, "target": self.target, "id": torch.arange(len(self.input_ids)) + first}

    @property
    def lengths(self) -> Tensor:
        """Tokens of every row."""
        return self.attention_mask.sum(1)


def word_table(
    tokenizer: Any,
    texts: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]] | None = None,
    max_length: int = 512,
) -> WordTable:
    """Tokenise every word alone and give its label to all of its sub-words: ``[CLS] words [SEP] padding``.

    Args:
        tokenizer: of transformers.
        texts: each as its words. labels: one number per word, or None (targets are then all ``IGNORED``).
        max_length: of a row with its special tokens; sub-words behind it are cut. A caller that must not lose any
            splits its texts first (:class:`~limbeck.models.token_classifier.TokenClassifier` does).
    """
    if labels is not None and [len(row) for row in labels] != [len(row) for row in texts]:
        raise UserError("labels", "rows of other lengths", "one label per word of every text")
    if max_length < 3:
        raise UserError("max_length", max_length, "3 or more: two special tokens and a sub-word")
    known = sub_words(tokenizer, {word for words in texts for word in words})
    first, last = special_ends(tokenizer)
    rows = []
    for number, words in enumerate(texts):
        pieces = [(piece, place) for place, word in enumerate(words) for piece in known[word]][: max_length - 2]
        marks = [IGNORED if labels is None else int(labels[number][place]) for _, place in pieces]
        ids = [first, *(piece for piece, _ in pieces), last]
        rows.append((ids, [-1, *(place for _, place in pieces), -1], [IGNORED, *marks, IGNORED]))
    longest = max((len(ids) for ids, _, _ in rows), default=2)
    pad = tokenizer.pad_token_id

    def column(which: int, fill: int) -> Tensor:
        filled = [row[which] + [fill] * (longest - len(row[which])) for row in rows]
        return torch.tensor(filled, dtype=torch.int64).view(len(rows), longest)

    counts = torch.tensor([len(ids) for ids, _, _ in rows]).view(-1, 1)
    mask = (torch.arange(longest) < counts).long()
    return WordTable(column(0, pad), mask, column(1, -1), column(2, IGNORED))


def sub_words(tokenizer: Any, words: set[str]) -> dict[str, list[int]]:
    """Sub-words of each word, tokenised alone; a word that the tokenizer leaves nothing of is its unknown token."""
    ordered = sorted(words)
    found = tokenizer(ordered, add_special_tokens=False)["input_ids"] if ordered else []
    return {word: list(ids) or [tokenizer.unk_token_id] for word, ids in zip(ordered, found)}


def special_ends(tokenizer: Any) -> tuple[int, int]:
    """The tokens before and behind a text: ``[CLS]`` and ``[SEP]``, or what takes their place."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None or tokenizer.pad_token_id is None:
        raise UserError("tokenizer", type(tokenizer).__name__, "one with tokens for begin, end and padding")
    return int(first), int(last)


def trim(batch: Batch) -> dict[str, Any]:
    """A transform of ``TensorLoader``: without the columns that are padding in every row of the batch."""
    longest = int(batch["input"]["attention_mask"].sum(1).max())
    inputs = {name: value[:, :longest] for name, value in batch["input"].items()}
    return {**batch, "input": inputs, "target": batch["target"][:, :longest]}
