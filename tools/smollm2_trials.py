"""What goes wrong in the middle of a job, tried with the real SmolLM2, into the ledger (examples/smollm2_trials.json):
a full disk, a killed writer, a server that goes away and comes back, another teacher than the cache's.

python tools/smollm2_trials.py [--out FOLDER]    about ten minutes; as root, since a small disk is mounted

The commands are those of a user, in processes of their own. A trial that does not end as it should is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_server import NAME, free_port, llama
from safetensors.torch import load_file, save_file

from limbeck.cache import CacheReader
from limbeck.data.sharegpt import exchanges
from limbeck.experiment.ledger import environment
from limbeck.job.output import write_text
from limbeck.testbeds.smollm2 import SmolLM2

LEDGER = Path(__file__).resolve().parents[1] / "ledger" / "examples" / "smollm2_trials.json"
CHATS, SMALL_DISK = 200, "400k"
TASK = ("--task", "causal-lm", "--max-length", "96", "--batch-size", "4")
DISTILL = ("--student", "slice:layers=0,29", "--baseline", "none", "--answers", "1", "--steps", "14")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/trials"))
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = itertools.islice(exchanges(), CHATS)
    (out / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = ("--teacher", f"hf:{SmolLM2().folder}", "--data", f"jsonl:{out / 'chats.jsonl'}", *TASK)
    trials = (full_disk, killed_writer, changed_teacher, absent_server)
    found = {}
    for trial in trials:
        found[trial.__name__.replace("_", " ")] = seen = trial(out, teacher)
        print(f"{trial.__name__}: {json.dumps(seen)}", flush=True)
    write_text(LEDGER, json.dumps({"trials": found, "manifest": environment()}, indent=1) + "\n")


def full_disk(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """A cache on a disk that is too small for it, which then grows."""
    disk = out / "disk"
    with mounted(disk, SMALL_DISK):
        told = failing("cache", *teacher, "--out", str(disk / "cache"))
        expect("free space" in told, told)
        kept = shards(disk / "cache")
        expect(bool(kept), "no shard was kept")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        working("cache", *teacher, "--out", str(disk / "cache"))
        return whole(disk / "cache", kept, told)


def killed_writer(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """One of two writers is killed (SIGKILL) once a shard is there."""
    cache = out / "cache"
    command = limbeck("cache", *teacher, "--writers", "2", "--out", str(cache))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as parent:
        wait_for(lambda: bool(shards(cache)), parent)
        os.kill(children(parent.pid)[-1], signal.SIGKILL)
        told = parent.communicate()[0]
    expect(parent.returncode != 0, told)
    kept = shards(cache)
    working("cache", *teacher, "--writers", "2", "--out", str(cache))
    return whole(cache, kept, told)


def changed_teacher(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """One weight of the teacher is another one than when the cache was written."""
    folder = out / "changed"
    shutil.copytree(SmolLM2().folder, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, path, {"format": "pt"})
    before = shards(out / "cache")
    given = (*teacher, *DISTILL, "--cache", str(out / "cache"))
    told = failing("distill", "--teacher", f"hf:{folder}", *given[2:], "--out", str(out / "changed-student"))
    expect("teacher" in told, told)
    expect(shards(out / "cache") == before, "the cache was touched")
    working("distill", *given, "--out", str(out / "same-student"))
    return {"told": last(told), "with the old teacher": "trained on the cache"}


def absent_server(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """A llama-cpp-python server, killed in the middle of a training and started again ten seconds later."""
    port, log, student = free_port(), out / "server.log", out / "served-student"
    source = f"server:http://127.0.0.1:{port},model={NAME},top=20"
    command = limbeck("distill", *teacher, *DISTILL, "--signals", source, "--out", str(student))
    with llama(log, port):
        training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        checkpoint = student / "training" / "log.jsonl"
        wait_for(lambda: checkpoint.is_file() and bool(checkpoint.read_text().strip()), training)
    time.sleep(10)
    expect(training.poll() is None, "the training did not wait")
    with llama(log, port):
        told = training.communicate()[0]
    expect(training.returncode == 0, told)
    result = json.loads((student / "result.json").read_text())
    return {"seconds away": 10, "steps": 14, "kl after training": result["models"]["student"]["kl"]}


def limbeck(*words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "limbeck.cli", *words]


def working(*words: str) -> str:
    done = subprocess.run(limbeck(*words), capture_output=True, text=True)
    expect(done.returncode == 0, done.stdout + done.stderr)
    return done.stdout


def failing(*words: str) -> str:
    done = subprocess.run(limbeck(*words), capture_output=True, text=True)
    expect(done.returncode != 0, done.stdout)
    return done.stdout + done.stderr


def expect(held: bool, otherwise: str) -> None:
    if not held:
        sys.exit(otherwise)


def shards(cache: Path) -> dict[str, int]:
    """Files of a cache, and of its writers, that hold signals, and when they were written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in sorted(cache.rglob("*.safetensors"))}


def whole(cache: Path, kept: dict[str, int], told: str) -> dict[str, Any]:
    """What a cache is after it was gone on with; what it had before must not have been written again."""
    after = shards(cache)
    expect(all(after.get(name) == written for name, written in kept.items()), "a good shard was written again")
    working("cache", "verify", str(cache))
    rows = len(CacheReader(cache, verify="full"))
    return {"told": last(told), "shards kept": len(kept), "shards": len(after), "samples": rows}


def last(told: str) -> str:
    """The last line that says something, without this machine's folders."""
    return told.strip().splitlines()[-1].replace(str(Path.cwd()) + os.sep, "")


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    until = time.monotonic() + seconds
    while not there():
        expect(process.poll() is None and time.monotonic() < until, "it ended before it could be disturbed")
        time.sleep(0.2)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A disk in memory of a ``size``."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "limbeck", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    main()
