"""Asking a server about many texts, and leaving out those that it reads otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from limbeck.errors import UserError
from limbeck.servers.connection import Connection, Misread, ServerRefused

log = logging.getLogger(__name__)
#: Share of the texts asked that a job leaves out before it stops.
UNREAD = 0.2
# Batches are of texts of like length, often cut alike, so that those that are misread come together.
_SPARE = 10
_REASONS = (
    "likely another tokenizer, a setting that adds or drops special tokens, or --max-length, which cuts texts where a "
    "server that takes text alone reads them otherwise"
)

Text = TypeVar("Text")
Answer = TypeVar("Answer")


@dataclass
class Questions:
    """Requests about texts. One that the server reads in other tokens (:class:`~limbeck.servers.Misread`) is left out.

    Attributes:
        connection: to the server.
        share: of the texts asked that may be left out, and 10 more on the way; with 0 the first is an error.
        asked, unread: texts so far, and those of them that were left out.
        first: what was said of the first of these.
    """

    connection: Connection
    share: float = 0.0
    asked: int = 0
    unread: int = 0
    first: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError("unread", self.share, "a share of the texts, 0 to 1")

    def __call__(
        self,
        path: str,
        texts: Sequence[Text],
        request: Callable[[Text], dict[str, Any]],
        read: Callable[[Any, Text], Answer],
    ) -> list[Answer | None]:
        """What ``read`` makes of the answers to the bodies of ``request``, text by text; None of one that is left out.

        Raises:
            Misread: one was left out, where none may be.
            ServerRefused: too many were left out, see ``share``.
        """
        self.asked += len(texts)
        bodies = {}
        for place, text in enumerate(texts):
            with self._leaving_out():
                bodies[place] = request(text)
        found: list[Answer | None] = [None] * len(texts)
        for place, answer in zip(bodies, self.connection.post_all(path, list(bodies.values())), strict=True):
            with self._leaving_out():
                found[place] = read(answer, texts[place])
        return found

    def check(self, unread: int, asked: int, spare: int = 0) -> None:
        """Refuse so many texts that were left out.

        Raises:
            ServerRefused: they are more than ``share`` of those asked, and ``spare``.
        """
        if unread > self.share * asked + spare:
            raise ServerRefused(
                f"the server at {self.connection.url} reads {unread} of {asked} texts in other tokens than the "
                f"tokenizer, more than {self.share:.0%} ({_REASONS}){'; the first: ' if self.first else ''}{self.first}"
            )

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        try:
            yield
        except Misread as reason:
            if not self.share:
                raise
            if not self.first:
                self.first = str(reason)
                log.warning("a text is left out, and so are others like it: %s", reason)
            self.unread += 1
            self.check(self.unread, self.asked, _SPARE)
