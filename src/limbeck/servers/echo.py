"""The dialect of llama-cpp-python and others that echo a text with its log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UserError
from limbeck.servers.base import Ask, Dialect, Entries, Sampling, Scored, Written, log_probability, value_at
from limbeck.servers.connection import Misread, ServerGone, ServerRefused


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
        choice = value_at(answer, "choices", 0) or {}
        if not isinstance(choice.get("text"), str):
            self.refuse("the answer has no text")
        self._check_read(answer, ids)
        return Written(self.texts.encode(choice["text"]), choice.get("finish_reason") == "stop")

    def settle_writing(self, ask: Ask, ids: Sequence[int]) -> None:
        read = value_at(ask(self.writing(ids, Sampling(1, 0.0, 1.0, 0)), None), "usage", "prompt_tokens")
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
                hint = "this server takes text alone, one of vLLM or SGLang takes tokens"
                shown = f"{self.texts.decode(ids[-12:])!r} at its end"
                self.refuse(f"a text with {shown} is not cut into just its tokens by the tokenizer", hint, Misread)
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
            read = value_at(answer, "usage", "prompt_tokens")
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
        read = value_at(answer, "usage", "prompt_tokens")
        if read is not None and read != len(ids):
            self.refuse(f"it read {read} tokens where the tokenizer has {len(ids)}", "another tokenizer?", Misread)

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
        said = value_at(answer, "choices", 0, "logprobs")
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
                own = [None if one is None else log_probability(one) for one in numbers]
                rows = dict(zip(labels, zip(said["top_logprobs"], own)))
                return _Tops(rows, kept_start=0 in rows)
        place = next((i for i, (a, b) in enumerate(zip(without, tokens)) if not self.texts.is_text(ids[a], b)), None)
        where = f"token {place} is {tokens[place]!r}" if place is not None else f"{len(tokens)} tokens came back"
        self.refuse(f"the echoed text was cut otherwise: {where}, of {len(ids)}", "another tokenizer?", Misread)


@dataclass(frozen=True)
class _Tops:
    """Log-probabilities by text and the echoed token's own, by its place in the text."""

    by_label: dict[int, tuple[Mapping[str, float] | None, float | None]]
    kept_start: bool


def _alike(one: Mapping[str, float], other: Mapping[str, float], tolerance: float = 0.05) -> bool:
    """Whether two lists of log-probabilities are of one distribution, to a server's rounding."""
    common = set(one) & set(other)
    if not common or 2 * len(common) < min(len(one), len(other)):
        return False
    return sum(abs(one[text] - other[text]) < tolerance for text in common) >= 0.8 * len(common)
