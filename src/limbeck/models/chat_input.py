"""Texts and conversations to tokens, with those marked that a language model is to learn: the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.data.chats import Chat
from limbeck.errors import UserError, first_line
from limbeck.models.network import TextInput

#: What a template of transformers stands around what the assistant says.
_MARKER = "{% generation %}"


@dataclass(frozen=True)
class Encoded:
    """Tokens of one sample.

    Attributes:
        ids: int64 ``[L]``.
        learnt: bool ``[L]``, the tokens that losses count; never the first, which nothing predicts.
        lost: tokens that were cut off.
        teacher: name of the teacher that the sample goes to, where samples are routed.
        teacher_prompt: int64, the prompt in the tokens and by the template of a teacher that has others.
    """

    ids: Tensor
    learnt: Tensor
    lost: int = 0
    teacher: str = ""
    teacher_prompt: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def start(self) -> int:
        """Where the first answer begins; behind the end where there is none."""
        return int(self.learnt.int().argmax()) if bool(self.learnt.any()) else len(self.ids)


@dataclass
class Counts:
    """What became of many samples: how many there were, were cut, and have nothing to learn."""

    samples: int = 0
    tokens: int = 0
    learnt: int = 0
    cut: int = 0
    lost: int = 0
    empty: int = 0

    @classmethod
    def of(cls, samples: Sequence[Encoded]) -> Counts:
        """Counted over ``samples``."""
        return cls(
            len(samples), sum(map(len, samples)), sum(int(one.learnt.sum()) for one in samples),
            sum(one.lost > 0 for one in samples), sum(one.lost for one in samples),
            sum(not bool(one.learnt.any()) for one in samples),
        )  # fmt: skip

    def describe(self, max_length: int) -> list[str]:
        """Sentences for a plan."""
        found = [f"{self.tokens:,} tokens in {self.samples:,} texts, of which {self.learnt:,} are learnt"]
        if self.cut:
            found.append(f"{self.cut:,} texts cut at {max_length} tokens, {self.lost:,} tokens lost (--max-length)")
        if self.empty:
            found.append(f"{self.empty:,} texts have no token to learn")
        return found


class ChatInput(TextInput):
    """Texts and :class:`~limbeck.data.chats.Chat` to padded token tensors, conversations through the chat template.

    The assistant's tokens are found by the template's own marks (``{% generation %}``) where it has them. Else every
    assistant turn stands between the templated text before it, with the prompt to answer, and the templated text up to
    its end; both have to begin the whole text, which is checked. What a template puts behind the token that ends a
    turn is not learnt.

    A tokenizer without a template reads a prompt with its completion as one text. Of a plain text every token is
    learnt but the first.
    """

    def encode(self, sample: str | Chat) -> Encoded:
        """Tokens of one sample, cut at ``max_length``.

        Raises:
            UserError: the template refuses the turns, or it is not known which tokens are the assistant's.
        """
        if isinstance(sample, str) or sample.is_plain:
            ids = self.tokenizer(str(sample)).input_ids
            learnt = [True] * len(ids)
        elif self.tokenizer.chat_template is None:
            ids, learnt = self._joined(sample)
        elif _MARKER in self._template():
            ids, learnt = self._marked(sample)
        else:
            ids, learnt = self._between(sample)
        kept = torch.tensor(ids[: self.max_length], dtype=torch.int64)
        mask = torch.tensor(learnt[: self.max_length], dtype=torch.bool)
        mask[:1] = False
        teacher = sample.teacher if isinstance(sample, Chat) else ""
        return Encoded(kept, mask, max(0, len(ids) - self.max_length), teacher)

    def __call__(self, texts: Sequence[Any]) -> dict[str, Tensor]:
        given = list(texts)
        if not any(isinstance(text, Chat) for text in given):
            return super().__call__(given)
        rows = [self.encode(text).ids.tolist() for text in given]
        found = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", return_attention_mask=True)
        made = {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}
        return {name: made[name] for name in self.names if name in made}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "template": fingerprint_text(self._template())}

    def _template(self) -> str:
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default", "")
        return str(template or "").replace("{%-", "{%").replace("-%}", "%}")

    def _rendered(self, turns: Sequence[tuple[str, str]], *, answer: bool = False) -> str:
        messages = Chat(tuple(turns)).messages
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except Exception as error:
            roles = ", ".join(role for role, _ in turns)
            raise UserError(
                "data", f"turns of {roles}", "turns that the tokenizer's chat template takes", first_line(error)
            ) from error
        return text

    def _marked(self, sample: Chat) -> tuple[list[int], list[bool]]:
        try:
            found = self.tokenizer.apply_chat_template(
                sample.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
                add_generation_prompt=not sample.answers,
            )  # fmt: skip
        except Exception as error:
            raise UserError(
                "data", f"turns of {', '.join(role for role, _ in sample.turns)}",
                "turns that the tokenizer's chat template takes", first_line(error),
            ) from error  # fmt: skip
        return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]

    def _between(self, sample: Chat) -> tuple[list[int], list[bool]]:
        """By the templated texts before and behind every turn of the assistant."""
        whole = self._rendered(sample.turns, answer=not sample.answers)
        spans = []
        for place, (role, _) in enumerate(sample.turns):
            # What opens a conversation has nothing before it that it could be predicted from.
            if role != "assistant" or not place:
                continue
            before = self._rendered(sample.turns[:place], answer=True)
            behind = self._rendered(sample.turns[: place + 1])
            if not (whole.startswith(before) and whole.startswith(behind) and len(before) <= len(behind)):
                hint = "this template writes early turns in another way once others follow: mark them in it"
                raise UserError(
                    "chat template", f"one that changes turn {place + 1} of {len(sample.turns)}",
                    f"a template whose text of the first turns begins the text of all, or one with {_MARKER}", hint,
                )  # fmt: skip
            spans.append((len(before), self._end(whole, len(before), len(behind))))
        if not self.tokenizer.is_fast:
            hint = "the places of tokens in the text are needed to find the assistant's"
            raise UserError("tokenizer", type(self.tokenizer).__name__, "a fast tokenizer (tokenizer.json)", hint)
        found = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], [_inside(start, end, spans) for start, end in found["offset_mapping"]]

    def _end(self, whole: str, start: int, end: int) -> int:
        """Without what the template puts behind the token that ends the turn: nobody ever generates that."""
        mark = self.tokenizer.eos_token
        place = whole.rfind(mark, start, end) if mark else -1
        return place + len(mark) if place >= 0 and not whole[place + len(mark) : end].strip() else end

    def _joined(self, sample: Chat) -> tuple[list[int], list[bool]]:
        """Without a template: what leads to the first answer as one text, and the answer behind it."""
        roles = [role for role, _ in sample.turns]
        if roles not in (["user", "assistant"], ["user"]):
            hint = "without a template only a prompt with one completion has a plain form"
            raise UserError("tokenizer", "one without a chat template", f"a template for {', '.join(roles)}", hint)
        prompt = self.tokenizer(sample.turns[0][1]).input_ids
        end = self.tokenizer.eos_token_id
        if prompt and prompt[-1] == end:
            prompt = prompt[:-1]
        if len(sample.turns) == 1:
            return prompt, [False] * len(prompt)
        answer = self.tokenizer(sample.turns[1][1], add_special_tokens=False).input_ids
        answer = answer if end is None else [*answer, end]
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _inside(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(first <= start < last for first, last in spans) and end > start
