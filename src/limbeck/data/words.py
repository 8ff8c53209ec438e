"""Texts as numbers of whole words, and masked words that any process can draw again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.signals import Batch

PAD, CLASS, MASK, UNKNOWN = range(4)
SPECIAL = ("[PAD]", "[CLS]", "[MASK]", "[UNK]")
#: The label of a token that no loss counts.
IGNORED = -100
_WORD = re.compile(r"[a-z0-9]+")
# Draws of augmentations count up from 0, those of masked patches from 1000; these begin behind both.
_CHOSEN, _FATE, _WORD_DRAW = 20000, 30000, 40000


class Words:
    """A tokenizer of whole words, with ``[CLS]`` in front; transformers' names for what it gives.

    Args:
        words: the vocabulary; four special tokens come before it.
        length: tokens of the longest text, ``[CLS]`` included; longer ones are cut.
    """

    def __init__(self, words: Iterable[str], length: int) -> None:
        self.words, self.length = (*SPECIAL, *dict.fromkeys(words)), length
        self.numbers = {word: number for number, word in enumerate(self.words)}
        if length < 2:
            raise UserError("length", length, "2 or more: [CLS] and a word")

    @classmethod
    def of(cls, texts: Iterable[str], length: int, *, at_least: int = 1) -> Words:
        """The words that stand in ``texts`` ``at_least`` so often, in alphabetical order."""
        counts = Counter(word for text in texts for word in split_words(text))
        return cls(sorted(word for word, count in counts.items() if count >= at_least), length)

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 ``[N, longest]``."""
        rows = [[CLASS, *(self.numbers.get(word, UNKNOWN) for word in split_words(text))] for text in texts]
        rows = [row[: self.length] for row in rows]
        longest = max((len(row) for row in rows), default=1)
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]).view(len(rows), longest)
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}

    def text(self, ids: Tensor) -> str:
        """The words of one row, without padding and ``[CLS]``."""
        return " ".join(self.words[number] for number in ids.tolist() if number not in (PAD, CLASS))


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


class MaskWords:
    """BERT's corruption: of ``share`` of the words, most become ``[MASK]``, some another word, some stay.

    A transform of ``TensorLoader``: it adds ``corrupted_ids`` and ``word_labels`` (``-100`` where nothing is asked) to
    a batch whose ``input`` holds ``input_ids``; the input itself stays whole. What is drawn is a function of the
    batch's ``view`` seeds, so that student, teacher and a resumed run see the same holes.

    Args:
        vocabulary: size of the tokenizer, special tokens included.
        share: of the words that are chosen. masked, replaced: shares of the chosen; the others stay as they are.
        mask: number of ``[MASK]``. special: numbers that are never chosen and never put in: padding, ``[CLS]``.
        before: another transform, called first.
    """

    def __init__(
        self,
        vocabulary: int,
        share: float = 0.15,
        *,
        masked: float = 0.8,
        replaced: float = 0.1,
        mask: int = MASK,
        special: Sequence[int] = (PAD, CLASS, MASK),
        before: Any = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError("share", share, "0 to 1")
        if min(masked, replaced) < 0 or masked + replaced > 1:
            raise UserError("masked, replaced", (masked, replaced), "two shares of 1")
        self.share, self.masked, self.replaced, self.mask = share, masked, replaced, mask
        self.special, self.before = tuple(special), before
        self.usual = torch.tensor([number for number in range(vocabulary) if number not in self.special])
        if not len(self.usual):
            raise UserError("vocabulary", vocabulary, "more than the special tokens")

    def __call__(self, batch: Batch) -> dict[str, Any]:
        given = dict(batch if self.before is None else self.before(dict(batch)))
        source = given.get("input")
        if "view" not in given or not isinstance(source, Mapping) or "input_ids" not in source:
            raise UserError("batch", sorted(given), "view seeds, as TensorLoader gives, and input_ids in the input")
        corrupted, labels = self.corrupt(source["input_ids"], given["view"])
        return {**given, "corrupted_ids": corrupted, "word_labels": labels}

    def corrupt(self, ids: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupted ids and labels, both ``[B, L]``, of ids ``[B, L]`` and view seeds ``[B]``."""
        places = torch.arange(ids.shape[1])
        allowed = ~torch.isin(ids, torch.tensor(self.special))
        chosen = allowed & (uniform(view[:, None], _CHOSEN + places) < self.share)
        fate = uniform(view[:, None], _FATE + places)
        others = self.usual[(uniform(view[:, None], _WORD_DRAW + places) * len(self.usual)).long()]
        corrupted = torch.where(chosen & (fate < self.masked), self.mask, ids)
        swapped = chosen & (fate >= self.masked) & (fate < self.masked + self.replaced)
        corrupted = torch.where(swapped, others, corrupted)
        return corrupted, torch.where(chosen, ids, IGNORED)
