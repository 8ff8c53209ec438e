"""Language models behind HTTP: the connection, what each kind of server is asked and answers, texts of tokens."""

from limbeck.servers.base import Dialect, Sampling, Scored, Written
from limbeck.servers.connection import Connection, Misread, ServerGone, ServerRefused
from limbeck.servers.dialects import DIALECTS, meet
from limbeck.servers.questions import UNREAD, Questions
from limbeck.servers.token_texts import TokenTexts

__all__ = [
    "DIALECTS",
    "UNREAD",
    "Connection",
    "Dialect",
    "Misread",
    "Questions",
    "Sampling",
    "Scored",
    "ServerGone",
    "ServerRefused",
    "TokenTexts",
    "Written",
    "meet",
]
