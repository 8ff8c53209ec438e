"""Which tokens of an answer belong together: phrases between function words, fixed windows, or random pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.views import uniform
from limbeck.errors import UserError

_WORDS = """
a an the this that these those some any all each every no its their his her our your my
of in on at by for from to with without into onto over under between through during before after against as about than
per via is are was were be been being has have had do does did can could may might must shall should will would
and or but nor if when while whether because so which who whose not it they we you
"""
#: Words that open a noun, verb or prepositional phrase of English: prepositions, articles, auxiliaries, conjunctions.
FUNCTION_WORDS = frozenset(_WORDS.split())
_CUTS = 1 << 22


class FunctionWordSpans:
    """A phrase begins at a function word that follows another word, and behind punctuation.

    "return the mean of the array" is cut into "return", "the mean", "of the array". Punctuation and special tokens
    belong to no span. A word of several tokens is never cut.

    Args:
        pieces: text of every token of the vocabulary; a token that begins a word begins with a space (or with one of
            the marks that tokenizers use for it). :func:`pieces_of` asks a tokenizer of transformers.
        special: ids that belong to no span.
        words: the function words, lower case.
    """

    def __init__(
        self, pieces: Sequence[str], special: Sequence[int] = (), words: frozenset[str] = FUNCTION_WORDS
    ) -> None:
        plain = [piece.replace("\u0120", " ").replace("\u2581", " ") for piece in pieces]
        bare = [piece.strip().lower() for piece in plain]
        self.begins = torch.tensor([piece[:1] == " " for piece in plain])
        self.function = torch.tensor([begins and text in words for begins, text in zip(self.begins.tolist(), bare)])
        self.outside = torch.tensor([not any(map(str.isalnum, text)) for text in bare])
        self.outside[list(special)] = True

    def __call__(self, tokens: Tensor, mask: Tensor, views: Tensor | None = None) -> Tensor:
        """Number of every token's span ``[B, A]``; -1 for none."""
        begins, function, outside = (
            table.to(tokens.device)[torch.where(mask, tokens, 0)]
            for table in (self.begins, self.function, self.outside)
        )
        inside = mask & ~outside
        # "in" of "in put" is no preposition: the next token must begin something new.
        follows = torch.ones_like(mask)
        follows[:, :-1] = begins[:, 1:] | outside[:, 1:] | ~mask[:, 1:]
        function = function & follows & inside
        before = torch.zeros_like(mask)
        before[:, 1:] = function[:, :-1]
        broken = torch.ones_like(mask)
        broken[:, 1:] = ~inside[:, :-1]
        starts = inside & (broken | (function & ~before))
        return torch.where(inside, starts.cumsum(1) - 1, -1)


class WindowSpans:
    """Spans of ``size`` tokens."""

    def __init__(self, size: int = 3) -> None:
        if size < 1:
            raise UserError("size", size, "1 or more")
        self.size = size

    def __call__(self, tokens: Tensor, mask: Tensor, views: Tensor | None = None) -> Tensor:
        """See :class:`FunctionWordSpans`."""
        numbers = torch.arange(tokens.shape[1], device=tokens.device) // self.size
        return torch.where(mask, numbers.expand_as(tokens), -1)


class RandomSpans:
    """Spans that end behind any token with probability ``1 / size``, drawn by the row's view: a control."""

    def __init__(self, size: float = 3.0) -> None:
        if size < 1:
            raise UserError("size", size, "1 or more")
        self.size = size

    def __call__(self, tokens: Tensor, mask: Tensor, views: Tensor | None = None) -> Tensor:
        """See :class:`FunctionWordSpans`; the views are needed."""
        if views is None:
            raise UserError("views", "none", "a view per row for random spans")
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        ends = uniform(views[:, None], _CUTS + columns) < 1 / self.size
        numbers = torch.zeros_like(tokens)
        numbers[:, 1:] = ends[:, :-1].cumsum(1)
        return torch.where(mask, numbers, -1)


def pieces_of(tokenizer: object) -> list[str]:
    """Text of every token of a tokenizer of transformers, in the order of their ids."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None:
        raise UserError("tokenizer", type(tokenizer).__name__, "a tokenizer of transformers")
    return [str(piece) for piece in convert(list(range(len(tokenizer))))]  # type: ignore[arg-type]
