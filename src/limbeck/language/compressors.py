"""Who shows a student what to leave out: anything that gives a shorter text for a text.

A teacher of compression is a function, text -> compressed text (:data:`Compressor`): a chat model behind an API,
people's own summaries and a measured saliency are one thing to whoever learns from it. Whether its words are the
original's is found out by :func:`limbeck.data.alignment.align`, not trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from limbeck.data.word_spans import Word, join_kept, split_spans
from limbeck.errors import UserError
from limbeck.language.keeping import Keeper
from limbeck.models.sentence import SentenceEncoder

#: Text -> a shorter text of the same meaning.
Compressor = Callable[[str], str]

INSTRUCTION = (
    "Shorten the text below as far as you can while everything it says can still be understood. "
    "You may only delete words. Do not change a word, do not abbreviate, do not add any, and keep the order. "
    "Answer with the shortened text alone.\n\n"
)


class Instructed:
    """A chat model as compressor.

    Args:
        answer: prompt -> answer; whatever runs the model (an OpenAI-compatible client, a transformers pipeline). The
            paper asks GPT-4 at temperature 0.3.
        instruction: stands before the text.
        longest: words of one request; longer texts are cut behind a full stop or a line end (the paper: 512 tokens).
    """

    def __init__(self, answer: Callable[[str], str], instruction: str = INSTRUCTION, longest: int = 400) -> None:
        if longest < 1:
            raise UserError("longest", longest, "1 or more words")
        self.answer, self.instruction, self.longest = answer, instruction, longest

    def __call__(self, text: str) -> str:
        return " ".join(self.answer(self.instruction + part).strip() for part in pieces(text, self.longest))


class Known:
    """Compressed texts that exist already: summaries by people, or answers that were asked for before."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = dict(pairs)

    def __call__(self, text: str) -> str:
        if text not in self.pairs:
            raise UserError("text", text[:60], f"one of {len(self.pairs)} texts whose compressed form is known")
        return self.pairs[text]


class Saliency:
    """What a text's vector loses with each word: ``s_i = 1 - cos(e(text), e(text without word i))``.

    A teacher of known quality: deterministic, aware of context, and dear, one pass of the encoder per word. Signs of
    punctuation are not tried; their saliency is 0.

    Args:
        encoder: of sentences; in bfloat16 it is twice as fast on a CPU that knows it, and ranks words as in float32.
        rate: of the compressed text; the words of highest saliency stay.
    """

    def __init__(self, encoder: SentenceEncoder, rate: float = 0.5, batch_size: int = 64) -> None:
        self.encoder, self.keeper, self.batch_size = encoder, Keeper(rate), batch_size

    def __call__(self, text: str) -> str:
        words = split_spans(text)
        return join_kept(words, self.keeper([word.text for word in words], self.scores(text).tolist()))

    def scores(self, text: str) -> Tensor:
        """Saliency per word of :func:`~limbeck.data.word_spans.split_spans`, float32 ``[words]``."""
        words = split_spans(text)
        tried = [place for place, word in enumerate(words) if word.spoken]
        found = torch.zeros(len(words))
        if tried:
            vectors = self.encoder.encode([text, *(without(text, words[place]) for place in tried)], self.batch_size)
            unit = normalize(vectors, dim=-1)
            found[torch.tensor(tried)] = 1 - unit[1:] @ unit[0]
        return found


def without(text: str, word: Word) -> str:
    """The text with one word cut out of it."""
    return f"{text[: word.start].rstrip()} {text[word.end :].lstrip()}".strip()


def pieces(text: str, longest: int) -> list[str]:
    """A text in parts of at most ``longest`` words, each cut behind its last full stop or line end if it has one."""
    words, found, start = split_spans(text, newlines=True), [], 0
    while start < len(words):
        stop = min(start + longest, len(words))
        if stop < len(words):
            stop = 1 + next((p for p in range(stop - 1, start - 1, -1) if words[p].text in (".", "\n")), stop - 1)
        found.append(text[words[start].start : words[stop - 1].end])
        start = stop
    return [part for part in found if part.strip()]


def compress_all(compressor: Compressor, texts: Sequence[str]) -> list[str]:
    """The compressed form of every text."""
    return [compressor(text) for text in texts]
