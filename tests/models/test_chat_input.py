from __future__ import annotations

import pytest
import torch

from limbeck.data.chats import Chat
from limbeck.errors import UserError
from limbeck.models.chat_input import ChatInput, Counts
from tests.models.tiny import CHATML, chat_tokenizer

TURNS = (
    ("system", "be short"), ("user", "what does the cat"), ("assistant", "the cat sleeps"),
    ("user", "and the dog"), ("assistant", "the dog runs"),
)  # fmt: skip
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The reasoning models' habit: earlier answers are shortened once another turn follows.
REWRITING = CHATML.replace("{{ message['content'] }}", "{{ message['content'] if loop.last else 'dropped' }}")


def reader(template: str | None = CHATML, max_length: int = 128) -> ChatInput:
    return ChatInput(chat_tokenizer(template), max_length)


def learnt(prepare: ChatInput, chat: Chat | str) -> str:
    one = prepare.encode(chat)
    return prepare.tokenizer.decode(one.ids[one.learnt])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_assistant_is_learnt_in_every_turn(template: str) -> None:
    prepare = reader(template)
    one = prepare.encode(Chat(TURNS))
    assert learnt(prepare, Chat(TURNS)) == "the cat sleeps<|im_end|>the dog runs<|im_end|>"
    whole = prepare.tokenizer.apply_chat_template(Chat(TURNS).messages, tokenize=False)
    assert prepare.tokenizer.decode(one.ids) == whole
    # The answer begins right behind the prompt that asks for it.
    assert prepare.tokenizer.decode(one.ids[: one.start]).endswith("<|im_start|>assistant\n")


def test_a_token_across_the_border_is_not_learnt() -> None:
    # "sleeps" is one token; without a mark between role and answer it may be cut in another way than alone.
    prepare = reader("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
                     "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    chat = Chat((("user", "cat"), ("assistant", "sleeps")))
    one = prepare.encode(chat)
    words = prepare.tokenizer.decode(one.ids[one.learnt])
    assert words
    assert "sleeps".endswith(words)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(UserError, match=r"changes turn 3 of 5.*generation"):
        reader(REWRITING).encode(Chat(TURNS))
    # A single turn is not rewritten.
    assert learnt(reader(REWRITING.replace("'dropped'", "message['content']")), Chat(TURNS)).startswith("the cat")


def test_a_template_that_refuses_turns_says_why() -> None:
    raising = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match="turns of system, user.*no system here"):
        reader(raising).encode(Chat(TURNS[:3]))


def test_cut_texts_and_texts_without_answers_are_counted() -> None:
    prepare = reader(max_length=24)
    rows = [prepare.encode(Chat(TURNS)), prepare.encode(Chat(TURNS[1:2])), prepare.encode("a good film")]
    counts = Counts.of(rows)
    assert (counts.samples, counts.cut, counts.empty) == (3, 1, 2)
    assert counts.lost == len(reader().encode(Chat(TURNS))) - 24
    assert len(counts.describe(24)) == 3
    assert prepare.tokenizer.decode(rows[1].ids).endswith("<|im_start|>assistant\n")
    assert rows[1].start == len(rows[1])


def test_plain_texts_count_all_but_their_first_token() -> None:
    one = reader().encode("a good film")
    assert one.learnt.tolist() == [False, *[True] * (len(one) - 1)]
    assert torch.equal(one.ids, reader().encode(Chat.plain("a good film")).ids)


def test_without_a_template_a_prompt_and_its_completion() -> None:
    prepare = reader(None)
    assert learnt(prepare, Chat((("user", "the cat "), ("assistant", "sleeps")))) == "sleeps<|im_end|>"
    with pytest.raises(UserError, match="one without a chat template"):
        prepare.encode(Chat(TURNS))


def test_padded_inputs_of_chats() -> None:
    prepare = reader()
    chats = [Chat(TURNS), Chat(TURNS[1:3])]
    given = prepare(chats)
    assert given["attention_mask"].sum(1).tolist() == [len(prepare.encode(chat)) for chat in chats]
    assert prepare.describe() != reader(MARKED).describe()
