"""A teacher behind HTTP: a server of language models that tells the log-probabilities of a prompt's tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_text, fingerprint_tokenizer
from limbeck.errors import UserError
from limbeck.servers.base import Entries, Scored
from limbeck.servers.connection import Connection, ServerRefused
from limbeck.servers.dialects import meet
from limbeck.servers.questions import Questions
from limbeck.servers.token_texts import TokenTexts
from limbeck.signals import TOLD, Batch, Signals, SparseLogits
from limbeck.sources.base import Source

PROBE = "The capital of France is Paris"
# Below this much the rest of float32 log-probabilities is rounding.
LEAST_REST = 2.0**-23
#: Tokens per place that are asked for unless somebody says otherwise.
TOP = 64


class Server(Source):
    """``logits`` of the answers in a batch of :meth:`~limbeck.language.Sequences.batch`, sparse, from a server.

    The server scores prompt and answer together and tells the ``top`` most probable tokens of every place; the rest of
    the vocabulary is one outcome with what is left, ``log(1 - sum of the listed probabilities)``. That is exact to the
    server's float32: a rest below 2^-23 cannot be known from such numbers and is given as 2^-23. Places that the
    batch's ``mask`` does not count, padding among them, hold an even distribution.

    Requests are made several at a time. A server that goes away in the middle of a run is waited for; after
    ``patience`` seconds the error names it and the last reason, and what a cache holds by then is kept, so that
    :func:`~limbeck.cache.write_cache` goes on where it stopped.

    The server is looked at when this is made: it knows the model, cuts a probe text into the tokenizer's tokens, and
    gives log-probabilities that depend on what stands before a token and on nothing else.

    Tested with a real llama-cpp-python server (dialect ``echo``); ``vllm`` and ``sglang`` were written from those
    projects' documentation and tested with an imitation only. See :mod:`limbeck.servers.dialects` for what each can
    do: a server of the kind ``echo`` takes text alone, so it cannot be asked about tokens that are not how the
    tokenizer cuts their text (some of a student's own), and it may itself cut a text otherwise. Such a text is an error
    (:class:`~limbeck.servers.Misread`), or with ``unread`` it is left out: its row holds an even distribution, and a
    second signal, ``told`` (bool ``[B]``), says which rows count. Objectives and caches keep to it.

    Args:
        url: ``http://host:port``.
        model: as the server calls it.
        tokenizer: of transformers, the teacher's and the student's.
        top: tokens per place. vLLM gives up to its ``--max-logprobs``, 20 by default.
        size: of the vocabulary, where the networks' is padded beyond the tokenizer's.
        dialect: ``vllm``, ``sglang``, ``echo``, or ``auto``, by what the server calls itself.
        concurrency, timeout, patience, key: see :class:`~limbeck.servers.Connection`.
        unread: share of the texts asked that may be left out; see :class:`~limbeck.servers.Questions`.
        probe: the text of the first look.
        revision: what tells this teacher from another of the same name, for the fingerprint. Without it the most
            probable tokens of the probe do, where they are so by a nat or more: a server whose rounding changes
            (batching on a GPU) can in rare cases count as another teacher then.

    Attributes:
        unclear: places' tokens that could not be told from another by their text, since this was made.
        filled: places where the server told fewer than ``top`` tokens; an even share of the rest was given to others.
        questions: counts the texts that were asked and left out.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Any,
        *,
        top: int = TOP,
        size: int | None = None,
        dialect: str = "auto",
        concurrency: int = 4,
        timeout: float = 120.0,
        patience: float = 300.0,
        key: str | None = None,
        unread: float = 0.0,
        probe: str = PROBE,
        revision: str | None = None,
    ) -> None:
        self.texts = TokenTexts(tokenizer)
        least = max(tokenizer.get_vocab().values()) + 1
        if size is not None and size < least:
            raise UserError("size", size, f"at least the tokenizer's {least}")
        self.size = size or least
        if not 1 <= top < self.size:
            raise UserError("top", top, f"1 to {self.size - 1}")
        self.model, self.top, self.revision = model, top, revision
        self.connection = Connection(url, timeout=timeout, patience=patience, concurrency=concurrency, key=key)
        self.questions = Questions(self.connection, unread)
        self.unclear = self.filled = 0
        self.dialect = meet(self.connection, model, self.texts, top=top, dialect=dialect)
        self._greeting = self._probe(self.texts.encode(probe))

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        others = set(needs) - {"logits", TOLD}
        if others:
            raise UserError("teacher signal", sorted(others), "logits, all that a server gives")
        ids, mask, answer = _tokens(batch)
        rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        present = mask[:, ids.shape[1] - answer :]
        # Losses count no other places, such as what a template writes before a turn.
        counted = present & batch["mask"].cpu().bool() if "mask" in batch else present
        asked = [number for number, wanted in enumerate(counted) if wanted.any()]
        scored = self.questions(
            self.dialect.path, [rows[number] for number in asked], self.dialect.request, self.dialect.read
        )
        places: list[list[Entries | None]] = [[] for _ in rows]
        told = torch.ones(len(rows), dtype=torch.bool)
        for number, said in zip(asked, scored, strict=True):
            told[number] = said is not None
            if said is not None:
                places[number] = self._answer(said, counted[number][present[number]].tolist(), batch, number)
        logits = self._sparse(places, answer).map(lambda tensor: tensor.to(batch["target"].device))
        return {"logits": logits, **({TOLD: told.to(batch["target"].device)} if self.questions.share else {})}

    @property
    def known(self) -> Any:
        """What tells this teacher from another of the same name: its revision, or what it is sure of on the probe."""
        return self.revision if self.revision is not None else self._greeting

    def fingerprint(self) -> str:
        tokenizer = fingerprint_tokenizer(self.texts.tokenizer)
        return fingerprint_text("server", self.model, self.top, self.size, tokenizer, self.known)

    def _probe(self, ids: Sequence[int]) -> list[list[int]]:
        """Score the probe text; what is certain in the answer, for the fingerprint."""
        if len(ids) < 3:
            raise UserError("probe", f"a text of {len(ids)} tokens", "3 tokens or more")

        def ask(body: dict[str, Any], patience: float | None) -> Any:
            return self.connection.post(self.dialect.path, body, patience=patience)

        ids, scored = self.dialect.settle(ask, ids)
        told = [(place, one) for place, one in enumerate(scored.entries) if one]
        if len(told) < len(ids) - 2:
            raise ServerRefused(
                f"the server at {self.connection.url} told log-probabilities of {len(told)} of {len(ids)} places"
            )
        certain = []
        for place, one in told:
            self._check_mass(one)
            best, *others = sorted(one, key=lambda number: -one[number])
            if not others or one[best] - one[others[0]] > 1:
                certain.append([place, best])
        return certain

    def _answer(self, scored: Scored, told: list[bool], batch: Batch, number: int) -> list[Entries | None]:
        """What is said of the last places of a text, those that are to be ``told``."""
        self.unclear += scored.unclear
        found: list[Entries | None] = []
        for place, wanted in enumerate(told):
            if not wanted:
                found.append(None)
                continue
            one = scored.entries[len(scored.entries) - len(told) + place]
            if one is None:
                which = int(batch["id"][number]) if "id" in batch else number
                raise UserError(
                    f"sample {which}", f"answer token {place}, which the server does not score",
                    "a prompt of two tokens or more, and no beginning-of-text token in or before the answer",
                )  # fmt: skip
            self._check_mass(one)
            found.append(one)
        return found

    def _check_mass(self, one: Entries) -> None:
        mass = math.fsum(math.exp(value) for value in one.values())
        if not mass <= 1.001 or any(not 0 <= number < self.size for number in one):
            raise ServerRefused(
                f"the server at {self.connection.url}: listed probabilities sum to {mass:.4f}, or are of tokens beyond "
                f"{self.size}; they are not those of one distribution over this vocabulary"
            )

    def _sparse(self, places: list[list[Entries | None]], answer: int) -> SparseLogits:
        shape = (len(places), answer)
        even = SparseLogits(
            torch.full((*shape, self.top), -math.log(self.size)),
            torch.arange(self.top).expand(*shape, self.top).clone(),
            torch.full(shape, math.log1p(-self.top / self.size)),
            self.size,
        )
        rows = [self._row(one) for row in places for one in row if one is not None]
        if rows:
            kept = torch.tensor([[one is not None for one in [*row, *[None] * (answer - len(row))]] for row in places])
            even.values[kept] = torch.tensor([row[0] for row in rows])
            even.indices[kept] = torch.tensor([row[1] for row in rows])
            even.rest[kept] = torch.tensor([row[2] for row in rows])
        return even

    def _row(self, one: Entries) -> tuple[list[float], list[int], float]:
        """``top`` log-probabilities with their tokens, falling, and the log of what is left; they sum to 1."""
        ranked = sorted(one, key=lambda number: (-one[number], number))
        kept = ranked[: self.top]
        dropped = math.fsum(math.exp(one[number]) for number in ranked[self.top :])
        listed = math.fsum(math.exp(one[number]) for number in kept)
        values, rest = [one[number] for number in kept], max(1 - listed - dropped, LEAST_REST) + dropped
        if len(kept) < self.top:
            self.filled += 1
            others, missing = self.size - len(kept), self.top - len(kept)
            kept += list(islice((number for number in range(self.size) if number not in one), missing))
            values += [math.log(rest / others)] * missing
            rest *= (others - missing) / others
        total = math.log(math.fsum(map(math.exp, values)) + rest)
        falling = sorted(zip(values, kept, strict=True), key=lambda pair: -pair[0])
        return [value - total for value, _ in falling], [number for _, number in falling], math.log(rest) - total


def _tokens(batch: Batch) -> tuple[Tensor, Tensor, int]:
    given = batch.get("input")
    names = ("input_ids", "attention_mask")
    if not isinstance(given, dict) or not all(name in given for name in names) or "target" not in batch:
        raise UserError("batch", sorted(map(str, batch)), "one of Sequences.batch(): input_ids, attention_mask, target")
    return given["input_ids"].cpu(), given["attention_mask"].cpu().bool(), batch["target"].shape[1]
