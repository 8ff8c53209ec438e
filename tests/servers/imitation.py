"""HTTP servers of the standard library that speak each dialect from a tiny random Llama, and fail on demand."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import tokenizers
import torch
import transformers

from limbeck.servers import TokenTexts

TEXT = (
    "the capital of france is paris and the capital of spain is madrid. caf\u00e9 \U0001f600 na\u00efve. "
    "What is the capital of France? The cat sat on the mat while 12 birds sang. "
) * 4
NAME = "tiny"
Fault = Callable[["Handler"], bool]


@cache
def tokenizer(text: str = TEXT) -> Any:
    """Byte-level pairs, with control tokens that a chat template uses; another ``text`` gives another one."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    controls = ["<|end|>", "<|start|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=controls, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([text], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )


@cache
def splits_numbers() -> Any:
    """The same tokens, but every digit is read alone: what is left of a tokenizer after a careless conversion."""
    made = copy.deepcopy(tokenizer())
    parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True), made.backend_tokenizer.pre_tokenizer]
    made.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    return made


@cache
def model(seed: int = 0) -> Any:
    """Random, yet sure enough of itself that its neighbours' distributions differ."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.4, bos_token_id=1, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def log_probs(ids: list[int], seed: int = 0) -> torch.Tensor:
    """``[n, V]``: row i is of the token behind token i."""
    with torch.no_grad():
        found: torch.Tensor = model(seed)(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return found


class Handler(BaseHTTPRequestHandler):
    """One request; what it does is the server's ``kind``, after the next of its ``faults``."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = {"vllm": "vllm", "sglang": "sglang"}.get(self.server.kind, "me")
        self.say(200, {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": owner}]})

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(self.body)
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None and fault(self):
            return
        answer = getattr(self, self.server.kind.replace("-", "_"))(self.body)
        self.say(*answer)

    def say(self, code: int, answer: Any, cut: int | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content) if cut is None else cut))
        self.end_headers()
        self.wfile.write(content[:cut])

    def vllm(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, top = body["prompt"], body.get("prompt_logprobs")
        if top is None:
            return 200, self.written(ids, body, "token_ids")
        if top > self.server.most:
            return 400, {"error": {"message": f"Requested prompt logprobs of {top}, max is {self.server.most}"}}
        said: list[Any] = [None]
        for place, row in zip(ids[1:], log_probs(ids, self.server.seed)):
            best = dict.fromkeys([*row.topk(top).indices.tolist(), place])
            decode = self.server.tokenizer.decode
            said.append({str(n): {"logprob": float(row[n]), "rank": 1, "decoded_token": decode([n])} for n in best})
        return 200, {"choices": [{"text": "x", "prompt_logprobs": None if self.server.mute else said}]}

    def sglang(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, top = body["input_ids"], body.get("top_logprobs_num")
        if not body.get("return_logprob"):
            written = self.written(ids, {**body, **body["sampling_params"]}, "output_ids")["choices"][0]
            reason = {"type": written["finish_reason"]}
            return 200, {
                "text": written["text"],
                "output_ids": written["output_ids"],
                "meta_info": {"finish_reason": reason},
            }
        shown = [self.server.tokenizer.decode([one]) if body.get("return_text_in_logprobs") else None for one in ids]
        own: list[Any] = [[None, ids[0], shown[0]]]
        tops: list[Any] = [None]
        for number, text, row in zip(ids[1:], shown[1:], log_probs(ids, self.server.seed)):
            own.append([float(row[number]), number, text])
            tops.append([[float(row[n]), n, None] for n in row.topk(top).indices.tolist()])
        meta = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": tops}
        return 200, {"text": "x", "meta_info": {} if self.server.mute else meta}

    def llama_cpp(self, body: dict[str, Any]) -> tuple[int, Any]:
        """With the quirks of llama-cpp-python 0.3.36, which were read off the real one."""
        if not isinstance(body["prompt"], str):
            return 500, {"error": {"message": "validation errors: Input should be a valid string"}}
        own = self.server.tokenizer
        ids = own.encode(body["prompt"], add_special_tokens=False)
        ids = [own.bos_token_id, *ids] if self.server.adds_start else ids
        if not body.get("echo"):
            return 200, self.written(ids, body, "ids")
        if self.server.mute:
            return 500, {"error": {"message": "logprobs is not supported for models created with logits_all=False"}}
        scores = log_probs(ids, self.server.seed)
        named = ids[1 if ids[0] == own.bos_token_id else 0 :]
        tokens, tops, mine = [], [], []
        for number, row in zip([*named, int(scores[-1].argmax())], scores):
            if number == own.bos_token_id:
                continue
            tokens.append(self.print(number))
            best = row.topk(body["logprobs"]).indices.tolist()
            tops.append({self.print(one): float(row[one]) for one in best} | {tokens[-1]: float(row[number])})
            mine.append(float(row[number]))
        tops[0], mine[0] = None, None  # type: ignore[call-overload]
        said = {"tokens": tokens, "token_logprobs": mine, "top_logprobs": tops}
        return 200, {"choices": [{"text": body["prompt"], "logprobs": said}], "usage": {"prompt_tokens": len(ids)}}

    def echo(self, body: dict[str, Any]) -> tuple[int, Any]:
        """As the interface was meant: tokens or text in, everything in its place, control tokens by name."""
        prompt, own = body["prompt"], self.server.tokenizer
        ids = own.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        scores = log_probs(ids, self.server.seed)
        tokens = [own.decode([number]) for number in ids]
        tops: list[Any] = [None]
        for row in scores[:-1]:
            tops.append({own.decode([n]): float(row[n]) for n in row.topk(body["logprobs"]).indices.tolist()})
        mine = [None, *(float(row[number]) for number, row in zip(ids[1:], scores))]
        said = None if self.server.mute else {"tokens": tokens, "token_logprobs": mine, "top_logprobs": tops}
        return 200, {"choices": [{"text": "x", "logprobs": said}], "usage": {"prompt_tokens": len(ids)}}

    def print(self, number: int) -> str:
        texts = self.server.texts
        return "" if number in texts.controls else texts.bytes[number].decode("utf-8", "ignore")

    def written(self, ids: list[int], body: dict[str, Any], name: str) -> dict[str, Any]:
        """Samples, or the most probable tokens at temperature 0; they depend on the prompt and the seed alone."""
        own, found, reason = self.server.tokenizer, [], "length"
        generator = torch.Generator().manual_seed(int(body.get("seed") or body.get("sampling_seed") or 0))
        for _ in range(body.get("max_tokens") or body["max_new_tokens"]):
            row = log_probs([*ids, *found], self.server.seed)[-1]
            number = int(row.argmax())
            if body["temperature"] > 0:
                number = int(torch.multinomial((row / body["temperature"]).softmax(-1), 1, generator=generator))
            if number == own.eos_token_id:
                reason = "stop"
                break
            found.append(number)
        choice = {"text": own.decode(found), name: found, "finish_reason": reason}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}


class Server(ThreadingHTTPServer):
    """See :func:`serving`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, kind: str, port: int = 0, **options: Any) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.kind, self.lock = kind, threading.Lock()
        self.faults: list[Fault | None] = []
        self.asked: list[dict[str, Any]] = []
        self.mute, self.adds_start, self.most, self.seed = False, False, 20, 0
        self.tokenizer = tokenizer()
        for name, value in options.items():
            setattr(self, name, value)
        self.texts = TokenTexts(self.tokenizer)
        # Made here and not in the first requests, which would draw its weights side by side.
        log_probs([0], self.seed)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def stop(self) -> None:
        """Go away: the port refuses from now on."""
        self.shutdown()
        self.server_close()


@contextmanager
def serving(kind: str, **options: Any) -> Iterator[Server]:
    """A server of ``vllm``, ``sglang``, ``llama-cpp`` or plain ``echo`` while the block runs."""
    server = Server(kind, **options)
    try:
        yield server
    finally:
        server.stop()


def drop(handler: Handler) -> bool:
    """Hang up."""
    handler.close_connection = True
    handler.connection.close()
    return True


def fail(code: int) -> Fault:
    """Answer with an error of HTTP."""

    def answer(handler: Handler) -> bool:
        handler.say(code, {"error": {"message": "out of luck"}})
        return True

    return answer


def torn(handler: Handler) -> bool:
    """Half an answer that says it is whole."""
    handler.say(200, {"choices": [{"text": "x" * 50}]}, cut=20)
    return True


def slow(seconds: float) -> Fault:
    """Think first."""

    def answer(handler: Handler) -> bool:
        time.sleep(seconds)
        return False

    return answer
