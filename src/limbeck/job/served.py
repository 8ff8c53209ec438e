"""A teacher behind a server: how it is named, what stands for its network in a plan, who asks it, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from limbeck.cache import CacheReader
from limbeck.cache.tools import untold
from limbeck.errors import UserError
from limbeck.language import Decoding, ServedDecoding
from limbeck.models.chat_input import Encoded
from limbeck.models.network import Network
from limbeck.servers import UNREAD, TokenTexts
from limbeck.sources import Source
from limbeck.sources.server import TOP, Server

if TYPE_CHECKING:
    from limbeck.job.language import Language

#: What a reference to a server begins with, as ``--teacher`` and as ``--signals``.
SCHEME = "server:"
# Tokens of one character, or of line ends and spaces in a row, that a cut may have parted.
_FEW = 8
_FORM = "server:http://HOST:PORT,model=NAME,top=20"
_ASKING: dict[str, Callable[[str], Any]] = {
    "dialect": str, "concurrency": int, "timeout": float, "patience": float, "unread": float,
}  # fmt: skip
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "model": str, "top": int, **_ASKING, "revision": str, "tokenizer": str,
}  # fmt: skip


@dataclass(frozen=True)
class Address:
    """``server:URL,model=NAME``, read.

    Attributes:
        url, model: the server, and what it calls the model.
        options: of :class:`~limbeck.sources.server.Server`.
        tokenizer: reference of the folder whose tokenizer the model has; the student's folder by default.
    """

    url: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""

    @classmethod
    def parse(cls, text: str, key: str) -> Address:
        """Read a reference.

        Raises:
            UserError: another form, an unknown option, or no model.
        """
        url, *parts = text.removeprefix(SCHEME).split(",")
        if not url.startswith(("http://", "https://")) or not all("=" in part for part in parts):
            raise UserError(key, text, _FORM)
        given = dict(part.split("=", 1) for part in parts)
        if "model" not in given:
            raise UserError(key, text, "server:URL,model=NAME", "the model's name is missing")
        for name in given:
            if name not in _OPTIONS:
                raise UserError(f"{key} option", name, _OPTIONS)
        try:
            options = {"unread": UNREAD, **{name: _OPTIONS[name](value) for name, value in given.items()}}
        except ValueError as error:
            raise UserError(key, text, "numbers for top, concurrency and seconds", str(error)) from None
        return cls(url, options.pop("model"), options, options.pop("tokenizer", ""))

    @property
    def top(self) -> int:
        """Tokens per place whose log-probabilities it tells."""
        return int(self.options.get("top", TOP))

    def source(self, tokenizer: Any, size: int | None) -> Server:
        """What tells its log-probabilities, once it was looked at."""
        return Server(self.url, self.model, tokenizer, size=size, **self.options)

    def writer(self, tokenizer: Any, how: Decoding, revision: str) -> ServedDecoding:
        """What lets it write."""
        options = {name: self.options[name] for name in _ASKING if name in self.options}
        return ServedDecoding(
            self.url, self.model, tokenizer, length=how.length, pad=how.pad, temperature=how.temperature,
            top_p=how.top_p, revision=revision, **options,
        )  # fmt: skip


class ServedTeacher(Network):
    """What a plan knows of a teacher behind a server: how its texts are read. Its weights are not here."""

    def __init__(self, address: Address, reference: str, tokenizer: Any, prepare: Any) -> None:
        super().__init__(
            nn.Module(), modality="text", task="causal-lm", prepare=prepare, reference=reference, tokenizer=tokenizer,
            notes=["behind a server: what only its weights tell (its own measures, closeness to it) is in no table"],
        )  # fmt: skip
        self.address = address

    def describe(self) -> str:
        """See :class:`~limbeck.models.network.Network`."""
        return f"{self.reference}: a language model behind a server"


def note_unread(language: Language, live: Source, cache: CacheReader | None = None) -> None:
    """Count the texts that a server read in other tokens: those of a whole ``cache``, or else those asked so far.

    Raises:
        ServerRefused: the cache lacks more of its texts than may be left out.
    """
    if not isinstance(live, Server):
        return
    found = live.questions.unread, live.questions.asked
    if cache is not None:
        found = untold(cache), len(cache)
        live.questions.check(*found)
    language.unread["texts"] = found


def readable(rows: Sequence[Encoded], tokenizer: Any) -> list[Encoded]:
    """Texts that were cut, without the few last tokens that their own text would not be cut into."""
    texts, made = TokenTexts(tokenizer), []
    for one in rows:
        lengths = range(len(one), max(len(one) - _FEW, 1), -1) if one.lost else ()
        fit = (length for length in lengths if texts.text_of(one.ids[:length].tolist()) is not None)
        length = next(fit, len(one))
        lost = one.lost + len(one) - length
        made.append(replace(one, ids=one.ids[:length], learnt=one.learnt[:length], lost=lost))
    return made


def is_served(reference: Any) -> bool:
    """Whether a reference names a server."""
    return isinstance(reference, str) and reference.startswith(SCHEME)
