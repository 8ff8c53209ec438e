from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import Decoding, OnPolicy, SequenceDistiller, Sequences, ServedDecoding, Step, write_texts
from limbeck.objectives import CrossEntropy
from limbeck.servers import Misread, ServerRefused, TokenTexts
from tests.servers import imitation
from tests.servers.imitation import NAME, drop, model, serving, tokenizer

KINDS = ("vllm", "sglang", "llama-cpp")
TEXTS = TokenTexts(tokenizer())
ASKED = ["the capital of france is", "<|start|>What is", "the cat sat on the mat"]
VIEWS = view_seeds(5, 0, torch.arange(3))


def prompts() -> Sequences:
    return Sequences.pad([TEXTS.encode(one) for one in ASKED], pad=0)


def served(server: imitation.Server, **options: Any) -> ServedDecoding:
    return ServedDecoding(server.url, NAME, tokenizer(), **{"length": 6, "timeout": 5, "patience": 5, **options})


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_most_probable_text_is_the_models_own(kind: str) -> None:
    here = Decoding(6, end=0, pad=0)(model(), prompts())
    with serving(kind) as server:
        found = served(server)(None, prompts())
    assert torch.equal(found.answer, here.answer)
    assert torch.equal(found.answer_mask, here.answer_mask)
    assert torch.equal(found.prompt, prompts().prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_repeat_themselves_row_by_row_and_change_with_the_view(kind: str) -> None:
    with serving(kind) as server:
        writer = served(server, temperature=0.7)
        one, again, other = (writer(None, prompts(), views) for views in (VIEWS, VIEWS, VIEWS + 1))
        alone = writer(None, prompts().select(torch.tensor([1])).trimmed(), VIEWS[1:2])
        server.faults = [None, drop]
        after = writer(None, prompts(), VIEWS)
    assert torch.equal(one.answer, again.answer)
    assert torch.equal(one.answer, after.answer)
    assert one.answer.tolist() != other.answer.tolist()
    assert alone.answer[0][alone.answer_mask[0]].tolist() == one.answer[1][one.answer_mask[1]].tolist()
    assert int(one.lengths.max()) <= 6


def test_text_that_is_begun_is_gone_on_with_and_an_end_is_an_end() -> None:
    begun = Sequences.pad(prompts().prompt.tolist(), [[5, 6], [7, 0], [8] * 6], pad=0)
    begun = Sequences(prompts().prompt, prompts().prompt_mask, begun.answer, begun.answer_mask)
    here = Decoding(6, end=0, pad=0)(model(), begun)
    with serving("vllm") as server:
        before = len(server.asked)
        found = served(server)(None, begun)
        assert len(server.asked) - before == 1, "two of three have nothing left to write"
        assert server.asked[-1]["max_tokens"] == 4
    assert torch.equal(found.answer, here.answer)
    assert torch.equal(found.answer_mask, here.answer_mask)


def test_the_end_that_a_server_keeps_to_itself_is_put_back() -> None:
    def ended(handler: imitation.Handler) -> bool:
        handler.say(200, {"choices": [{"text": "", "token_ids": [9, 8], "finish_reason": "stop"}]})
        return True

    with serving("vllm") as server:
        writer = served(server)
        server.faults = [ended]
        assert writer(None, prompts().select(torch.tensor([0]))).answer.tolist() == [[9, 8, 0]]


def test_nothing_is_written_behind_a_prompt_that_is_read_otherwise() -> None:
    asked = Sequences.pad([TEXTS.encode(one) for one in (ASKED[0], "the 12 birds")], pad=0)
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        with pytest.raises(Misread, match="where the tokenizer has"):
            served(server)(None, asked)
        writer = served(server, unread=0.5)
        found = writer(None, asked)
        alone = writer(None, asked.select(torch.tensor([0])).trimmed())
    assert found.lengths.tolist() == [alone.lengths.item(), 0]
    assert found.answer[0].tolist() == alone.answer[0].tolist()
    assert (writer.questions.asked, writer.questions.unread) == (3, 1)


def test_prompts_that_were_left_out_are_asked_again(tmp_path: Path) -> None:
    asked, ids = Sequences.pad([TEXTS.encode(one) for one in (ASKED[0], "the 12 birds")], pad=0), torch.tensor([4, 7])
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        text = write_texts(served(server, unread=0.5), None, asked, ids, file=tmp_path / "texts.jsonl")
        assert text.written.lengths[1] == 0
    with serving("llama-cpp") as server:
        again = write_texts(served(server), None, asked, ids, file=tmp_path / "texts.jsonl")
        assert len(server.asked) == 1 + 1, "the probe, and the prompt that was left out"
    assert again.written.lengths[1] > 0
    assert torch.equal(again.written.answer[0], text.written.answer[0])


def test_requests_switch_off_the_servers_own_filters() -> None:
    with serving("llama-cpp") as server:
        served(server, top_p=0.9)(None, prompts(), VIEWS)
        sent = server.asked[-1]
    assert (sent["top_k"], sent["min_p"], sent["repeat_penalty"], sent["top_p"]) == (0, 0.0, 1.0, 0.9)
    assert isinstance(sent["seed"], int)
    assert 0 <= sent["seed"] < 2**31


def test_a_writer_of_a_distiller() -> None:
    with serving("vllm") as server:
        policy = OnPolicy(served(server))
        text = policy(Step(model(), None, prompts(), VIEWS, torch.arange(3)))
        assert isinstance(SequenceDistiller(model(1), CrossEntropy(), writer=policy).writer, OnPolicy)
    assert text.answer_mask.any()


def test_refuses() -> None:
    with serving("vllm") as server:
        for wrong in ({"temperature": 0}, {"top_p": 0}, {"dialect": "tgi"}):
            with pytest.raises(UserError):
                served(server, **wrong)
        with pytest.raises(UserError, match="model: given huge; allowed: tiny"):
            ServedDecoding(server.url, "huge", tokenizer(), length=3)
        prints = {served(server).fingerprint(), served(server, temperature=0.5).fingerprint()}
        assert len(prints) == 2
    with serving("llama-cpp", adds_start=True) as server:
        begun = prompts().select(torch.tensor([1]))
        assert served(server)(None, begun).answer_mask.any()
        assert not server.asked[-1]["prompt"].startswith("<|start|>")
        with pytest.raises(UserError, match="a text without a beginning-of-text token"):
            served(server)(None, prompts())
    other = tokenizer("xyzzy plugh " * 9 + imitation.TEXT)
    with serving("llama-cpp", tokenizer=other) as server, pytest.raises(ServerRefused, match="another tokenizer"):
        served(server)(None, Sequences.pad([TEXTS.encode("plugh xyzzy")], pad=0))
