"""Writing with a model behind a server."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.errors import UserError
from limbeck.language.sequences import Sequences
from limbeck.servers import Connection, Questions, Sampling, TokenTexts, Written, meet

_SEEDS = 2**31
_PROBE = "The capital of France"


class ServedDecoding:
    """A :class:`~limbeck.language.Generator` whose model is behind a server of vLLM, SGLang or llama-cpp-python.

    Rows are requests of their own, several at a time, each with its view as seed; the server's other filters (top-k,
    min-p, penalties) are switched off. The model that is handed over is not looked at: the text is by the weights that
    the server has. As a teacher that writes, that is what is wanted (:func:`~limbeck.language.write_texts`); as a
    student, its weights are those of the last time the server took them over, which is up to you.

    A sample repeats itself only as far as the server lets it: llama-cpp-python does, vLLM and SGLang do up to the
    rounding of their batches. Tested with a real llama-cpp-python; ``vllm`` and ``sglang`` with an imitation only.

    Args:
        url, model, dialect, concurrency, timeout, patience, key: see :class:`~limbeck.sources.Server`.
        tokenizer: of transformers; its ``eos_token_id`` ends a text.
        length: tokens of an answer at most, with what it begins with. pad: filler; the end token if None.
        temperature, top_p: of the samples.
        unread: share of the prompts that may be left out since the server reads them in other tokens: nothing is
            written behind them. With 0 the first is an error; see :class:`~limbeck.servers.Questions`.
        revision: what tells the model from another of the same name.

    Attributes:
        questions: counts the prompts that were asked and left out.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Any,
        *,
        length: int,
        pad: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        dialect: str = "auto",
        concurrency: int = 4,
        timeout: float = 120.0,
        patience: float = 300.0,
        key: str | None = None,
        unread: float = 0.0,
        revision: str = "",
    ) -> None:
        if not temperature > 0:
            raise UserError("temperature", temperature, "a positive number; views=None takes the most probable token")
        if not 0 < top_p <= 1:
            raise UserError("top_p", top_p, "above 0, at most 1")
        if tokenizer.eos_token_id is None:
            raise UserError("tokenizer", "one without an end-of-text token", "one with eos_token_id")
        self.model, self.length, self.temperature, self.top_p = model, length, temperature, top_p
        self.revision = revision
        self.end = int(tokenizer.eos_token_id)
        self.pad = self.end if pad is None else pad
        self.connection = Connection(url, timeout=timeout, patience=patience, concurrency=concurrency, key=key)
        self.questions = Questions(self.connection, unread)
        texts = TokenTexts(tokenizer)
        self.dialect = meet(self.connection, model, texts, top=1, dialect=dialect)
        self.dialect.settle_writing(
            lambda body, wait: self.connection.post(self.dialect.path, body, patience=wait), texts.encode(_PROBE)
        )

    def __call__(self, model: nn.Module | None, given: Sequences, views: Tensor | None = None) -> Sequences:
        """Write on from ``given``; greedily without views."""
        begun = [row[mask].tolist() for row, mask in zip(given.answer, given.answer_mask, strict=True)]
        prompts = [row[mask].tolist() for row, mask in zip(given.prompt, given.prompt_mask, strict=True)]
        rows = [row for row, one in enumerate(begun) if len(one) < self.length and one[-1:] != [self.end]]

        def request(row: int) -> dict[str, Any]:
            seed = 0 if views is None else int(views[row]) % _SEEDS
            temperature = 0.0 if views is None else self.temperature
            how = Sampling(self.length - len(begun[row]), temperature, 1.0 if views is None else self.top_p, seed)
            return self.dialect.writing(prompts[row] + begun[row], how)

        def read(answer: Any, row: int) -> Written:
            return self.dialect.written(answer, prompts[row] + begun[row])

        for row, found in zip(rows, self.questions(self.dialect.path, rows, request, read), strict=True):
            if found is None:
                continue
            ids = found.ids[: found.ids.index(self.end)] if self.end in found.ids else found.ids
            ended = found.ended or self.end in found.ids
            begun[row] = [*begun[row], *ids, *([self.end] if ended else [])][: self.length]
        made = Sequences.pad(prompts, begun, pad=self.pad)
        device = given.prompt.device
        return given.with_answers(made.answer.to(device), made.answer_mask.to(device))

    def fingerprint(self) -> str:
        """Of what decides a text, but for the weights, for which model and revision stand."""
        how = (self.model, self.length, self.end, self.temperature, self.top_p)
        return fingerprint_text("served", *how, *([self.revision] if self.revision else []))
