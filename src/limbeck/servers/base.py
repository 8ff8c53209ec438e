"""What one way to ask a server has to say about itself: how a text's tokens are scored, and how one is written on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from limbeck.servers.connection import ServerRefused
from limbeck.servers.token_texts import TokenTexts

Entries = dict[int, float]
Ask = Callable[[dict[str, Any], float | None], Any]


@dataclass
class Scored:
    """What a server says about a text of n tokens.

    Attributes:
        entries: ``entries[i]``: log-probabilities of tokens at place i given those before it, by token; None where the
            server says nothing.
        unclear: tokens among the answers that could not be told from another one by their text; they are left out.
    """

    entries: list[Entries | None]
    unclear: int = 0


@dataclass
class Dialect(ABC):
    """One way to ask; ``top`` log-probabilities per place are wanted.

    Attributes:
        model: as the server calls it.
        texts: of the tokenizer.
        top: tokens per place.
    """

    model: str
    texts: TokenTexts
    top: int
    path: str = field(default="/v1/completions", init=False)
    asks_texts: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def request(self, ids: Sequence[int]) -> dict[str, Any]:
        """The body that asks about a text.

        Raises:
            Misread: this server can be given text alone, and the tokenizer cuts the text of these tokens otherwise.
            UserError: the server adds a token to every text that this one does not begin with.
        """

    @abstractmethod
    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        """What was answered.

        Raises:
            Misread: other tokens were read than the tokenizer's.
            ServerRefused: anything else that is missing or does not fit.
        """

    def settle(self, ask: Ask, ids: Sequence[int]) -> tuple[list[int], Scored]:
        """Find out what has to be known of this server on a probe text; its tokens as asked for, and what was said.

        Numbers that mean other tokens to the server than to the tokenizer are refused.

        ``ask(body, patience)`` gives the answer to a body.
        """
        answer = ask({**self.request(ids), **self.asks_texts}, None)
        scored = self.read(answer, ids)
        for number, text in zip(ids, self.printed(answer, ids)):
            if text and not self.texts.is_text(number, text):
                mine = self.texts.bytes[number].decode("utf-8", "replace")
                self.refuse(f"its token {number} is {text!r} and not {mine!r}", "another tokenizer?")
        return list(ids), scored

    def printed(self, answer: Any, ids: Sequence[int]) -> Iterable[str | None]:
        """The texts of the tokens in an answer to a request with ``asks_texts``, as far as there are any."""
        return ()

    @abstractmethod
    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        """The body that asks to write on behind a text."""

    @abstractmethod
    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        """What was written; a Misread as in :meth:`read`."""

    def settle_writing(self, ask: Ask, ids: Sequence[int]) -> None:  # noqa: B027
        """Find out on a probe text what has to be known of a server that writes."""

    def refuse(self, missing: str, hint: str = "", kind: type[ServerRefused] = ServerRefused) -> NoReturn:
        """Stop at an answer that cannot be used."""
        raise kind(f"server of {self.model} ({type(self).__name__}): {missing}{'; ' + hint if hint else ''}")


@dataclass(frozen=True)
class Sampling:
    """How a server is to write: ``temperature`` 0 takes the most probable token; ``seed`` makes a sample its own."""

    length: int
    temperature: float
    top_p: float
    seed: int

    def body(self) -> dict[str, Any]:
        """The settings by the names that all servers share; none of the filters that some have by default."""
        greedy = {"temperature": self.temperature, "top_p": self.top_p, "min_p": 0.0}
        return greedy if self.temperature == 0 else {**greedy, "seed": self.seed}


@dataclass(frozen=True)
class Written:
    """What a server wrote: tokens, and whether it came to an end by itself."""

    ids: list[int]
    ended: bool


def value_at(value: Any, *keys: str | int) -> Any:
    """What stands in an answer behind these keys; None where nothing does."""
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def log_probability(value: Any) -> float:
    """A log-probability; servers write that of an impossible token as -inf, -9999 or null."""
    number = -math.inf if value is None else float(value)
    return -math.inf if number <= -9999 else number
