"""What each kind of server is asked for the log-probabilities of a text's tokens, and how it answers.

===========  =====================  =======================================  =======  =============================
dialect      servers                request                                  prompt   names tokens by
===========  =====================  =======================================  =======  =============================
``vllm``     vLLM                   ``/v1/completions``, prompt_logprobs     tokens   number
``sglang``   SGLang                 ``/generate``, return_logprob            tokens   number
``echo``     llama-cpp-python,      ``/v1/completions``, echo and logprobs   text     text
             others of that kind
===========  =====================  =======================================  =======  =============================

``echo`` was written against a real llama-cpp-python server (0.3.36) and is tested with one; ``vllm`` and ``sglang``
follow their documentation and source and are tested against our own imitation only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from limbeck.errors import UserError
from limbeck.servers.connection import Connection, ServerGone, ServerRefused
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
        """The body that asks about a text; a UserError where this server cannot be asked about these tokens."""

    @abstractmethod
    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        """What was answered; a ServerRefused says what is missing or does not fit."""

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
        """What was written."""

    def settle_writing(self, ask: Ask, ids: Sequence[int]) -> None:  # noqa: B027
        """Find out on a probe text what has to be known of a server that writes."""

    def refuse(self, missing: str, hint: str = "") -> NoReturn:
        """Stop at an answer that cannot be used."""
        raise ServerRefused(f"server of {self.model} ({type(self).__name__}): {missing}{'; ' + hint if hint else ''}")


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


class VLLM(Dialect):
    """vLLM's extension ``prompt_logprobs``; the server's ``--max-logprobs`` (20) bounds ``top``."""

    def request(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": self.top,
        }  # fmt: skip

    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        given = _path(answer, "choices", 0, "prompt_logprobs")
        if not given:
            self.refuse("the answer has no prompt_logprobs", "is this a vLLM server? --max-logprobs must be above 0")
        if len(given) != len(ids):
            self.refuse(f"{len(given)} tokens were scored of a text of {len(ids)}")
        entries: list[Entries | None] = [None]
        for number, place in zip(ids[1:], given[1:], strict=True):
            found = {int(token): _number(one["logprob"]) for token, one in (place or {}).items()}
            if number not in found:
                self.refuse(f"the text's own token {number} is not among the scored ones", "other tokens were read")
            entries.append(found)
        return Scored(entries)

    def printed(self, answer: Any, ids: Sequence[int]) -> Iterable[str | None]:
        places = _path(answer, "choices", 0, "prompt_logprobs")
        return [_path(place, str(number), "decoded_token") for number, place in zip(ids, places, strict=True)]

    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        others = {"max_tokens": how.length, "top_k": -1, "repetition_penalty": 1.0, "return_token_ids": True}
        return {"model": self.model, "prompt": list(ids), **how.body(), **others}

    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        choice = _path(answer, "choices", 0) or {}
        if choice.get("token_ids") is None:
            self.refuse("the answer has no token_ids", "a vLLM that knows return_token_ids is needed")
        return Written([int(one) for one in choice["token_ids"]], choice.get("finish_reason") == "stop")


@dataclass
class SGLang(Dialect):
    """SGLang's own endpoint."""

    asks_texts: ClassVar[Mapping[str, Any]] = {"return_text_in_logprobs": True}

    def __post_init__(self) -> None:
        self.path = "/generate"

    def request(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "input_ids": list(ids), "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": self.top,
        }  # fmt: skip

    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        meta = _path(answer, "meta_info") or {}
        own, tops = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
        if not own or not tops:
            self.refuse("the answer has no input_top_logprobs", "is this an SGLang server?")
        if [one[1] for one in own] != list(ids):
            self.refuse("other tokens were read than were sent", f"{len(own)} instead of {len(ids)}")
        entries: list[Entries | None] = [None]
        for said, place in zip(own[1:], tops[1:], strict=True):
            found = {int(one[1]): _number(one[0]) for one in place or ()}
            entries.append(found | {int(said[1]): _number(said[0])})
        return Scored(entries)

    def printed(self, answer: Any, ids: Sequence[int]) -> Iterable[str | None]:
        return [_path(one, 2) for one in _path(answer, "meta_info", "input_token_logprobs")]

    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        given = how.body()
        seed = {"sampling_seed": given.pop("seed")} if "seed" in given else {}
        others = {"max_new_tokens": how.length, "top_k": -1, "repetition_penalty": 1.0}
        return {"input_ids": list(ids), "sampling_params": {**given, **seed, **others}}

    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        found = _path(answer, "output_ids")
        if found is None:
            self.refuse("the answer has no output_ids", "is this an SGLang server?")
        ended = _path(answer, "meta_info", "finish_reason", "type") == "stop"
        return Written([int(one) for one in found], ended)


@dataclass
class Echo(Dialect):
    """The ``echo`` of OpenAI's first completions, as llama-cpp-python has it.

    Tokens come back as text. One whose text another token has too (pieces of characters, control tokens) counts to the
    rest, unless it is the text's own next token, whose log-probability is given apart. Two quirks of llama-cpp-python
    are known here and found out on a probe: beginning-of-text tokens are left out of the echo; and where the text does
    not begin with one, the log-probabilities stand one place too early, beside the token that they follow.

    Attributes:
        spare: asked for above ``top``, since some come back unclear.
        by_number: whether the server takes tokens as prompt.
        early: whether log-probabilities stand one place too early (see above).
        adds_start: whether the server puts a beginning-of-text token before every text.
    """

    spare: int = 16
    by_number: bool = False
    early: bool = False
    adds_start: bool = False

    @property
    def start(self) -> int | None:
        """The beginning-of-text token."""
        number = self.texts.tokenizer.bos_token_id
        return None if number is None else int(number)

    def request(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": self._prompt(ids), "max_tokens": 1, "temperature": 0, "echo": True,
            "logprobs": self.top + self.spare,
        }  # fmt: skip

    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        others = {"max_tokens": how.length, "top_k": 0, "repeat_penalty": 1.0}
        return {"model": self.model, "prompt": self._prompt(ids), **how.body(), **others}

    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        choice = _path(answer, "choices", 0) or {}
        if not isinstance(choice.get("text"), str):
            self.refuse("the answer has no text")
        self._check_read(answer, ids)
        return Written(self.texts.encode(choice["text"]), choice.get("finish_reason") == "stop")

    def settle_writing(self, ask: Ask, ids: Sequence[int]) -> None:
        read = _path(ask(self.writing(ids, Sampling(1, 0.0, 1.0, 0)), None), "usage", "prompt_tokens")
        self.adds_start = self.start is not None and read == len(ids) + 1

    def _prompt(self, ids: Sequence[int]) -> Any:
        prompt: Any = list(ids)
        if not self.by_number:
            if self.adds_start and ids[0] != self.start:
                raise UserError(
                    "sample", "a text without a beginning-of-text token", "texts that begin with one",
                    "the server adds it to every text",
                )  # fmt: skip
            prompt = self.texts.text_of(ids)
            if prompt is None:
                raise UserError(
                    "sample", f"tokens {list(ids)[:12]}...", "tokens as the tokenizer cuts prompt and answer in one",
                    "this server reads text alone and would cut it otherwise; a server of vLLM or SGLang takes tokens",
                )  # fmt: skip
            if self.adds_start:
                prompt = prompt.removeprefix(self.texts.bytes[ids[0]].decode())
        return prompt

    def settle(self, ask: Ask, ids: Sequence[int]) -> tuple[list[int], Scored]:
        """Whether tokens are taken as prompt, whether a start is added, and where log-probabilities stand."""
        ids, answer = list(ids), None
        self.by_number = True
        try:
            answer = ask(self.request(ids), 0.0)
            self._tops(answer, ids)
        except (ServerRefused, ServerGone):
            # A server that is away, or gives nothing at all, will say so again when it is asked by text.
            self.by_number = False
            answer = ask(self.request(ids), None)
            read = _path(answer, "usage", "prompt_tokens")
            if self.start is not None and read == len(ids) + 1:
                self.adds_start, ids = True, [self.start, *ids]
        mine = self._last(self._tops(answer, ids), ids)
        other = self._other_end(ids)
        self.early = not _alike(mine, self._last(self._tops(ask(self.request(other), None), other), other))
        return ids, self.read(answer, ids)

    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        tops = self._tops(answer, ids)
        entries: list[Entries | None] = [None] * len(ids)
        unclear = 0
        # Where the start token is left out of the echo, the others are in their right places.
        shift = int(self.early and tops.kept_start)
        for label, (texts, own) in tops.by_label.items():
            place = label + shift
            if place >= len(ids) or texts is None:
                continue
            found = {number: value for text, value in texts.items() if (number := self.texts.id_of(text)) is not None}
            unclear += len(texts) - len(found)
            if not shift and own is not None:
                found[ids[label]] = own
            entries[place] = found
        return Scored(entries, unclear)

    def _check_read(self, answer: Any, ids: Sequence[int]) -> None:
        read = _path(answer, "usage", "prompt_tokens")
        if read is not None and read != len(ids):
            self.refuse(f"it read {read} tokens where the tokenizer has {len(ids)}", "another tokenizer?")

    def _other_end(self, ids: list[int]) -> list[int]:
        """The probe with another last token, which the server will cut as we do."""
        for number in dict.fromkeys(ids[1:-1]):
            other = [*ids[:-1], number]
            if number != ids[-1] and (self.by_number or self.texts.text_of(other) is not None):
                return other
        self.refuse("the probe text cannot end otherwise", "give another probe=")

    def _last(self, tops: _Tops, ids: list[int]) -> Mapping[str, float]:
        """What stands beside the last token: log-probabilities of that place, unless they are early."""
        return (tops.by_label.get(len(ids) - 1) or (None, None))[0] or {}

    def _tops(self, answer: Any, ids: Sequence[int]) -> _Tops:
        said = _path(answer, "choices", 0, "logprobs")
        if not said or not said.get("top_logprobs"):
            self.refuse(
                "the answer has no log-probabilities of the prompt",
                "llama-cpp-python needs --logits_all true; llama.cpp's own llama-server does not give them",
            )
        self._check_read(answer, ids)
        tokens = said["tokens"]
        whole = list(range(len(ids)))
        without = [place for place in whole if ids[place] != self.start]
        for labels in (whole, without):
            # The token that was written behind the text may be there or not.
            if len(tokens) - len(labels) in (0, 1) and all(
                self.texts.is_text(ids[label], text) for label, text in zip(labels, tokens)
            ):
                numbers = said.get("token_logprobs") or [None] * len(tokens)
                own = [None if one is None else _number(one) for one in numbers]
                rows = dict(zip(labels, zip(said["top_logprobs"], own)))
                return _Tops(rows, kept_start=0 in rows)
        place = next((i for i, (a, b) in enumerate(zip(without, tokens)) if not self.texts.is_text(ids[a], b)), None)
        where = f"token {place} is {tokens[place]!r}" if place is not None else f"{len(tokens)} tokens came back"
        self.refuse(f"the echoed text was cut otherwise: {where}, of {len(ids)}", "another tokenizer?")


@dataclass(frozen=True)
class _Tops:
    """Log-probabilities by text and the echoed token's own, by its place in the text."""

    by_label: dict[int, tuple[Mapping[str, float] | None, float | None]]
    kept_start: bool


DIALECTS: dict[str, type[Dialect]] = {"vllm": VLLM, "sglang": SGLang, "echo": Echo}


def meet(connection: Connection, model: str, texts: TokenTexts, *, top: int, dialect: str) -> Dialect:
    """Ask a server which models it has, and choose how to speak with it; ``auto`` goes by what it calls itself."""
    if dialect not in ("auto", *DIALECTS):
        raise UserError("dialect", dialect, ("auto", *DIALECTS))
    # A wrong address should be told at once, not after the patience of a run.
    answer = connection.get("/v1/models", patience=min(5.0, connection.patience))
    models = _path(answer, "data") or []
    names = [str(one.get("id")) for one in models]
    if model not in names:
        raise UserError("model", model, names, f"the server at {connection.url} has these")
    return DIALECTS[dialect_of(models) if dialect == "auto" else dialect](model, texts, top)


def dialect_of(models: Iterable[Mapping[str, Any]]) -> str:
    """The dialect of a server by its list of models, which name their owner."""
    owners = {str(one.get("owned_by", "")).lower() for one in models}
    return next((name for name in ("vllm", "sglang") if name in owners), "echo")


def _alike(one: Mapping[str, float], other: Mapping[str, float], tolerance: float = 0.05) -> bool:
    """Whether two lists of log-probabilities are of one distribution, to a server's rounding."""
    common = set(one) & set(other)
    if not common or 2 * len(common) < min(len(one), len(other)):
        return False
    return sum(abs(one[text] - other[text]) < tolerance for text in common) >= 0.8 * len(common)


def _path(value: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _number(value: Any) -> float:
    """A log-probability; servers write that of an impossible token as -inf, -9999 or null."""
    number = -math.inf if value is None else float(value)
    return -math.inf if number <= -9999 else number
