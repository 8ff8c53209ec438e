from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import tools, write_cache
from limbeck.errors import UserError
from limbeck.language import Sequences
from limbeck.objectives import KL, CrossEntropy, total
from limbeck.servers import Misread, ServerGone, ServerRefused, TokenTexts
from limbeck.signals import SparseLogits
from limbeck.sources import Cached, Server
from tests.servers import imitation
from tests.servers.imitation import NAME, drop, fail, log_probs, serving, slow, tokenizer, torn
from tests.sources.contract import check_source, rows_of

KINDS = ("vllm", "sglang", "llama-cpp", "echo")
TEXTS = TokenTexts(tokenizer())
TALK = [
    ("<|start|>What is the capital of France?", " The capital of France is Paris.<|end|>"),
    ("the cat sat on", " the mat while 12 birds"),
    ("<|start|>the capital of spain is", " madrid."),
    ("caf\u00e9", " na\u00efve \U0001f600 sang. "),
]


def text() -> dict[str, Any]:
    prompts, answers = ([TEXTS.encode(one) for one in part] for part in zip(*TALK))
    return {**Sequences.pad(prompts, answers, pad=0).batch(), "id": torch.arange(len(TALK)) + 10}


def source(server: imitation.Server, **options: Any) -> Server:
    return Server(server.url, NAME, tokenizer(), **{"top": 12, "timeout": 5, "patience": 5, **options})


def truth(batch: dict[str, Any]) -> torch.Tensor:
    """What the model says of every answer token ``[B, A, V]``, row by row without padding."""
    count = batch["target"].shape[1]
    found = torch.zeros(len(batch["id"]), count, len(tokenizer()))
    for row, (ids, mask) in enumerate(
        zip(batch["input"]["input_ids"], batch["input"]["attention_mask"].bool(), strict=True)
    ):
        length = int(mask[-count:].sum())
        found[row, :length] = log_probs(ids[mask].tolist())[-length - 1 : -1]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_server_gives_the_models_distribution_at_the_right_places(kind: str) -> None:
    batch = text()
    with serving(kind) as server:
        asked = source(server)
        found = asked(batch, ("logits",))["logits"]
        assert isinstance(found, SparseLogits)
    whole, mask = truth(batch), batch["mask"]
    assert found.values.shape == (*batch["target"].shape, 12)
    kept = found.values[mask] > -3.5
    difference = (found.values - whole.gather(-1, found.indices))[mask]
    assert float(difference[kept].abs().max()) < 1e-4
    torch.testing.assert_close(found.values.exp().sum(-1) + found.rest.exp(), torch.ones(mask.shape))
    assert (found.values[..., 1:] <= found.values[..., :-1]).all()
    if kind in ("vllm", "sglang"):
        exact = SparseLogits.from_dense(whole, 12)
        torch.testing.assert_close(found.values[mask], exact.values[mask], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.rest.exp()[mask], exact.rest.exp()[mask], rtol=0, atol=1e-6)
        assert torch.equal(found.indices[mask], exact.indices[mask])
        assert (asked.unclear, asked.filled) == (0, 0)
    else:
        assert asked.unclear > 0, "pieces of characters have no text of their own"
    assert asked.dialect.path == ("/generate" if kind == "sglang" else "/v1/completions")


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_every_source(kind: str) -> None:
    with serving(kind) as server:
        check_source(source(server), rows_of(text(), torch.tensor([0, 2])), ("logits",), tolerance=1e-4)


def test_quirks_are_found_out_on_the_probe() -> None:
    with serving("llama-cpp") as real, serving("echo") as plain:
        ours, theirs = source(real).dialect, source(plain).dialect
    assert (ours.by_number, ours.early, ours.adds_start) == (False, True, False)  # type: ignore[attr-defined]
    assert (theirs.by_number, theirs.early, theirs.adds_start) == (True, False, False)  # type: ignore[attr-defined]


def test_a_server_that_puts_a_start_before_every_text_gets_texts_without_it() -> None:
    batch = text()
    with serving("llama-cpp", adds_start=True) as server:
        asked = source(server)
        begun = rows_of(batch, torch.tensor([0, 2]))
        found = asked(begun, ("logits",))["logits"]
        sent = [one["prompt"] for one in server.asked[-2:]]
        assert all(not one.startswith("<|start|>") for one in sent)
        assert isinstance(found, SparseLogits)
        kept = (found.values > -3.5) & begun["mask"][..., None]
        assert float((found.values - truth(begun).gather(-1, found.indices))[kept].abs().max()) < 1e-4
        with pytest.raises(UserError, match="a text without a beginning-of-text token"):
            asked(batch, ("logits",))


def test_tokens_that_a_text_is_not_cut_into_are_refused_where_text_is_all_there_is() -> None:
    letters = [TEXTS.encode(letter)[0] for letter in "capital"]
    batch = {**Sequences.pad([letters[:3]], [letters[3:]], pad=0).batch(), "id": torch.tensor([1])}
    with (
        serving("llama-cpp") as server,
        pytest.raises(Misread, match="a text with .* at its end is not cut into just its tokens by the tokenizer"),
    ):
        source(server)(batch, ("logits",))
    with serving("vllm") as server:
        source(server)(batch, ("logits",))


def mixed() -> tuple[dict[str, Any], dict[str, Any]]:
    """Four texts, of which the second (letters one by one) and the third (a number) are misread; and the two others."""
    letters = [TEXTS.encode(letter)[0] for letter in "capital"]
    rows = [[TEXTS.encode(one) for one in pair] for pair in [*TALK[:2], TALK[3]]]
    both = [rows[0], [letters[:3], letters[3:]], rows[1], rows[2]]
    made = []
    for pairs, ids in ((both, [10, 11, 12, 13]), ([rows[0], rows[2]], [10, 13])):
        made.append({**Sequences.pad(*zip(*pairs, strict=True), pad=0).batch(), "id": torch.tensor(ids)})
    return made[0], made[1]


def logits_of(batch: dict[str, Any]) -> torch.Tensor:
    """A student's, the same for a text in whatever batch."""
    drawn = [torch.randn(40, 320, generator=torch.Generator().manual_seed(int(one))) for one in batch["id"]]
    return torch.stack(drawn)[:, : batch["target"].shape[1]].requires_grad_()


def test_texts_that_are_read_otherwise_do_not_count() -> None:
    batch, good = mixed()
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        with pytest.raises(Misread, match="read [0-9]+ tokens where the tokenizer has [0-9]+; another tokenizer"):
            source(server)(rows_of(batch, torch.tensor([0, 2])), ("logits",))
        asked = source(server, unread=0.5)
        found, alone = asked(batch, ("logits",)), asked(good, ("logits",))
    assert found["told"].tolist() == [True, False, False, True]  # type: ignore[union-attr]
    assert alone["told"].tolist() == [True, True]  # type: ignore[union-attr]
    assert (asked.questions.asked, asked.questions.unread) == (6, 2)
    objective = 0.5 * CrossEntropy() + KL()
    ours, theirs = logits_of(batch), logits_of(good)
    total(objective({"logits": ours}, found, batch)).backward()
    total(objective({"logits": theirs}, alone, good)).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert not ours.grad[1:3].any()
    width = theirs.shape[1]
    torch.testing.assert_close(ours.grad[[0, 3], :width], theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_of_nothing_else_is_harmless() -> None:
    batch = rows_of(mixed()[0], torch.tensor([1, 2]))
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        found = source(server, unread=1)(batch, ("logits",))
    logits = logits_of(batch)
    loss = total((CrossEntropy() + KL())({"logits": logits}, found, batch))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_too_many_of_them_end_it_with_the_count() -> None:
    batch = mixed()[0]
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        asked = source(server, unread=0.25)
        for _ in range(10):
            asked(batch, ("logits",))
        with pytest.raises(ServerRefused, match="reads 22 of 44 texts in other tokens than the tokenizer"):
            asked(batch, ("logits",))


def test_a_cache_knows_what_was_left_out(tmp_path: Path) -> None:
    batch = mixed()[0]
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        asked = source(server, unread=0.5)
        live = asked(batch, ("logits",))
        write_cache(asked, [batch], tmp_path / "a", ("logits",), "topk:12:float32", ragged=("logits",))
        filled = Cached(tmp_path / "b", asked, fill=True, codec="topk:12:float32", ragged=("logits",))
        first = filled(batch, ("logits",))
        filled.close()
        before = len(server.asked)
        tools.recode(tmp_path / "a", tmp_path / "c", "topk:12:float32")
        cached = [Cached(tmp_path / name) for name in "abc"]
        read = [one(batch, ("logits",)) for one in cached]
        read.append(cached[0](cached[0].attach(("logits",))(batch), ("logits",)))
        assert len(server.asked) == before
    objective, logits = CrossEntropy() + KL(), logits_of(batch)
    wanted = total(objective({"logits": logits}, live, batch))
    for found in (first, *read):
        assert torch.equal(found["told"], live["told"])  # type: ignore[arg-type]
        torch.testing.assert_close(total(objective({"logits": logits}, found, batch)), wanted)
    assert [tools.show(tmp_path / name)["left_out"] for name in "abc"] == [2, 2, 2]


def test_places_that_the_server_does_not_score_are_an_error() -> None:
    batch = {**Sequences.pad([TEXTS.encode("the")], [TEXTS.encode(" cat sat")], pad=0).batch(), "id": torch.tensor([7])}
    with serving("llama-cpp") as server, pytest.raises(UserError, match="sample 7: given answer token 0"):
        source(server)(batch, ("logits",))


def test_places_that_nobody_counts_need_no_score() -> None:
    talk = "<|start|>What is the capital<|end|><|start|> of France?<|end|><|start|> Paris<|end|>"
    ids = TEXTS.encode(talk)
    batch = {**Sequences.pad([ids[:1]], [ids[1:]], pad=0).batch(), "id": torch.tensor([7])}
    counted = torch.tensor([[one != imitation.tokenizer().bos_token_id for one in ids[1:]]])
    counted[:, 0] = False
    with serving("llama-cpp") as server:
        with pytest.raises(UserError, match="sample 7: given answer token"):
            source(server)(batch, ("logits",))
        found = source(server)({**batch, "mask": counted}, ("logits",))["logits"]
    assert isinstance(found, SparseLogits)
    kept = (found.values > -3.5) & counted[..., None]
    assert float((found.values - truth(batch).gather(-1, found.indices))[kept].abs().max()) < 1e-4
    assert torch.equal(found.values[~counted], torch.full_like(found.values[~counted], -math.log(found.size)))


def test_padding_rows_and_few_answers_do_no_harm() -> None:
    batch = text()
    batch["input"]["attention_mask"][1, -batch["target"].shape[1] :] = 0
    with serving("vllm") as server:
        before = len(server.asked)
        found = source(server)(batch, ("logits",))["logits"]
        assert len(server.asked) - before == 1 + 3, "a probe, and no request for a row without an answer"
    assert isinstance(found, SparseLogits)
    assert torch.isfinite(found.values).all()
    torch.testing.assert_close(found.values[1].exp(), torch.full_like(found.values[1], 1 / 320))


FAULTS = {"drop": drop, "500": fail(500), "503": fail(503), "torn": torn, "slow": slow(0.6)}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_on_the_way_changes_nothing(name: str) -> None:
    batch = text()
    with serving("sglang") as server:
        asked = source(server, timeout=0.4)
        clean = asked(batch, ("logits",))["logits"]
        server.faults = [None, FAULTS[name], None, FAULTS[name]]
        again = asked(batch, ("logits",))["logits"]
    assert isinstance(clean, SparseLogits)
    assert isinstance(again, SparseLogits)
    assert torch.equal(clean.values, again.values)
    assert torch.equal(clean.indices, again.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_log_probabilities_is_refused_at_once(kind: str) -> None:
    with serving(kind, mute=True) as server, pytest.raises((ServerRefused, ServerGone)) as caught:
        source(server)
    if kind in ("llama-cpp", "echo"):
        assert "logits_all" in str(caught.value)


def test_a_wrong_server_is_refused_at_once() -> None:
    with serving("vllm") as server:
        with pytest.raises(UserError, match="model: given huge; allowed: tiny; the server at http"):
            Server(server.url, "huge", tokenizer())
        with pytest.raises(ServerRefused, match="Requested prompt logprobs of 64, max is 20"):
            source(server, top=64)
        with pytest.raises(UserError, match="dialect: given tgi; allowed: auto, vllm, sglang, echo"):
            source(server, dialect="tgi")
        with pytest.raises(UserError, match="size: given 10"):
            source(server, size=10)
        with pytest.raises(UserError, match="top: given 0"):
            source(server, top=0)
        with pytest.raises(UserError, match="teacher signal: given .'hidden'"):
            source(server)(text(), ("hidden",))
        with pytest.raises(UserError, match=r"one of Sequences.batch"):
            source(server)({"input": torch.ones(2, 2)})
    with pytest.raises(ServerGone, match="gave no answer"):
        source(server, patience=0)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama-cpp"])
def test_another_tokenizer_is_refused(kind: str) -> None:
    other = tokenizer("xyzzy plugh " * 9 + imitation.TEXT)
    with serving(kind, tokenizer=other) as server, pytest.raises(ServerRefused, match="another tokenizer"):
        source(server, probe="xyzzy plugh xyzzy plugh the cat")


def test_numbers_that_are_no_distribution_are_refused() -> None:
    def liar(handler: imitation.Handler) -> bool:
        body = handler.body
        code, answer = handler.vllm(body)
        for place in answer["choices"][0]["prompt_logprobs"][1:]:
            for one in place.values():
                one["logprob"] /= 3
        handler.say(code, answer)
        return True

    with serving("vllm") as server:
        server.faults = [liar]
        with pytest.raises(ServerRefused, match="listed probabilities sum to"):
            source(server)


def test_the_fingerprint_knows_model_and_vocabulary_and_not_the_address() -> None:
    with serving("vllm") as one, serving("sglang") as two, serving("vllm", seed=1) as three:
        prints = [source(server).fingerprint() for server in (one, two, three)]
        assert prints[0] == prints[1] != prints[2]
        assert source(one, size=400).fingerprint() != prints[0]
        pinned = [source(server, revision="v2").fingerprint() for server in (one, three)]
        assert pinned[0] == pinned[1]
        assert source(one, size=400)(text(), ("logits",))["logits"].size == 400  # type: ignore[union-attr]


def test_a_cache_is_written_on_when_the_server_is_back(tmp_path: Path) -> None:
    batch = text()
    rows = [rows_of(batch, torch.tensor([row])) for row in range(4)]
    with serving("vllm") as server:
        asked = source(server, patience=0.3)
        server.faults = [None, None, *[fail(503)] * 99]
        with pytest.raises(ServerGone, match="HTTP 503"):
            write_cache(asked, rows, tmp_path, ("logits",), "topk:12:float32", ragged=("logits",))
    with serving("vllm") as server:
        write_cache(source(server), rows, tmp_path, ("logits",), "topk:12:float32", ragged=("logits",))
        assert len(server.asked) == 1 + 2, "the probe, and the two samples that were missing"
        whole = source(server)(batch, ("logits",))["logits"]
        found = Cached(tmp_path, expect={"teacher": source(server).fingerprint()})(batch, ("logits",))["logits"]
    assert isinstance(found, SparseLogits)
    assert isinstance(whole, SparseLogits)
    mask = batch["mask"]
    torch.testing.assert_close(found.values[mask], whole.values[mask])
    assert torch.equal(found.indices[mask], whole.indices[mask])


def test_a_server_that_goes_away_mid_run_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    batch = text()
    back: list[imitation.Server] = []
    with serving("sglang") as server:
        asked, port = source(server, patience=20), server.server_port
        clean = asked(batch, ("logits",))["logits"]
    timer = threading.Timer(0.5, lambda: back.append(imitation.Server("sglang", port)))
    timer.start()
    again = asked(batch, ("logits",))["logits"]
    timer.join()
    back[0].stop()
    assert torch.equal(clean.values, again.values)  # type: ignore[union-attr]
    assert json.dumps(asked.fingerprint())
