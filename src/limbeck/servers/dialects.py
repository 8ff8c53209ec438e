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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from limbeck.errors import UserError
from limbeck.servers.base import Dialect, Entries, Sampling, Scored, Written, log_probability, value_at
from limbeck.servers.connection import Connection
from limbeck.servers.echo import Echo
from limbeck.servers.token_texts import TokenTexts


class VLLM(Dialect):
    """vLLM's extension ``prompt_logprobs``; the server's ``--max-logprobs`` (20) bounds ``top``."""

    def request(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": self.top,
        }  # fmt: skip

    def read(self, answer: Any, ids: Sequence[int]) -> Scored:
        given = value_at(answer, "choices", 0, "prompt_logprobs")
        if not given:
            self.refuse("the answer has no prompt_logprobs", "is this a vLLM server? --max-logprobs must be above 0")
        if len(given) != len(ids):
            self.refuse(f"{len(given)} tokens were scored of a text of {len(ids)}")
        entries: list[Entries | None] = [None]
        for number, place in zip(ids[1:], given[1:], strict=True):
            found = {int(token): log_probability(one["logprob"]) for token, one in (place or {}).items()}
            if number not in found:
                self.refuse(f"the text's own token {number} is not among the scored ones", "other tokens were read")
            entries.append(found)
        return Scored(entries)

    def printed(self, answer: Any, ids: Sequence[int]) -> Iterable[str | None]:
        places = value_at(answer, "choices", 0, "prompt_logprobs")
        return [value_at(place, str(number), "decoded_token") for number, place in zip(ids, places, strict=True)]

    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        others = {"max_tokens": how.length, "top_k": -1, "repetition_penalty": 1.0, "return_token_ids": True}
        return {"model": self.model, "prompt": list(ids), **how.body(), **others}

    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        choice = value_at(answer, "choices", 0) or {}
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
        meta = value_at(answer, "meta_info") or {}
        own, tops = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
        if not own or not tops:
            self.refuse("the answer has no input_top_logprobs", "is this an SGLang server?")
        if [one[1] for one in own] != list(ids):
            self.refuse("other tokens were read than were sent", f"{len(own)} instead of {len(ids)}")
        entries: list[Entries | None] = [None]
        for said, place in zip(own[1:], tops[1:], strict=True):
            found = {int(one[1]): log_probability(one[0]) for one in place or ()}
            entries.append(found | {int(said[1]): log_probability(said[0])})
        return Scored(entries)

    def printed(self, answer: Any, ids: Sequence[int]) -> Iterable[str | None]:
        return [value_at(one, 2) for one in value_at(answer, "meta_info", "input_token_logprobs")]

    def writing(self, ids: Sequence[int], how: Sampling) -> dict[str, Any]:
        given = how.body()
        seed = {"sampling_seed": given.pop("seed")} if "seed" in given else {}
        others = {"max_new_tokens": how.length, "top_k": -1, "repetition_penalty": 1.0}
        return {"input_ids": list(ids), "sampling_params": {**given, **seed, **others}}

    def written(self, answer: Any, ids: Sequence[int]) -> Written:
        found = value_at(answer, "output_ids")
        if found is None:
            self.refuse("the answer has no output_ids", "is this an SGLang server?")
        ended = value_at(answer, "meta_info", "finish_reason", "type") == "stop"
        return Written([int(one) for one in found], ended)


DIALECTS: dict[str, type[Dialect]] = {"vllm": VLLM, "sglang": SGLang, "echo": Echo}


def meet(connection: Connection, model: str, texts: TokenTexts, *, top: int, dialect: str) -> Dialect:
    """Ask a server which models it has, and choose how to speak with it; ``auto`` goes by what it calls itself."""
    if dialect not in ("auto", *DIALECTS):
        raise UserError("dialect", dialect, ("auto", *DIALECTS))
    # A wrong address should be told at once, not after the patience of a run.
    answer = connection.get("/v1/models", patience=min(5.0, connection.patience))
    models = value_at(answer, "data") or []
    names = [str(one.get("id")) for one in models]
    if model not in names:
        raise UserError("model", model, names, f"the server at {connection.url} has these")
    return DIALECTS[dialect_of(models) if dialect == "auto" else dialect](model, texts, top)


def dialect_of(models: Iterable[Mapping[str, Any]]) -> str:
    """The dialect of a server by its list of models, which name their owner."""
    owners = {str(one.get("owned_by", "")).lower() for one in models}
    return next((name for name in ("vllm", "sglang") if name in owners), "echo")
