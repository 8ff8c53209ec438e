"""Language models behind HTTP: the connection, what each kind of server is asked and answers, texts of tokens."""

from limbeck.servers.connection import Connection, ServerGone, ServerRefused
from limbeck.servers.dialects import DIALECTS, Dialect, Scored, dialect_of
from limbeck.servers.token_texts import TokenTexts

__all__ = [
    "DIALECTS",
    "Connection",
    "Dialect",
    "Scored",
    "ServerGone",
    "ServerRefused",
    "TokenTexts",
    "dialect_of",
]
