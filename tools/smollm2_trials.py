"""What goes wrong in the middle of a job, tried with the real SmolLM2, into the ledger (examples/smollm2_trials.json):
a full disk, a killed writer, a server that goes away and comes back, another teacher than the cache's.

python tools/smollm2_trials.py [--out FOLDER]    about ten minutes; as root, since a small disk is mounted. Trials
    that are done are not repeated when it is interrupted.

The commands are those of a user, in processes of their own. A trial that does not end as it should is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
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
    out.mkdir(parents=True, exist_ok=True)
    write_chats(out / "chats.jsonl", exchanges())
    teacher = ("--teacher", f"hf:{SmolLM2().folder}", "--data", f"jsonl:{out / 'chats.jsonl'}", *TASK)
    seen = out / "seen.json"
    found: dict[str, Any] = json.loads(seen.read_text()) if seen.is_file() else {}
    for trial in (full_disk, killed_writer, changed_teacher, absent_server):
        name = trial.__name__.replace("_", " ")
        if name not in found:
            found[name] = trial(out, teacher)
            write_text(seen, json.dumps(found))
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    write_text(LEDGER, json.dumps({"trials": found, "manifest": environment()}, indent=1) + "\n")


def write_chats(path: Path, rows: Iterator[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in itertools.islice(rows, CHATS)))


def full_disk(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """A cache on a disk that is too small for it, which then grows."""
    disk = fresh(out / "disk")
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
    cache = fresh(out / "cache")
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
    folder = fresh(out / "changed")
    student = [fresh(out / f"{name}-student") for name in ("changed", "same")]
    shutil.copytree(SmolLM2().folder, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, path, {"format": "pt"})
    before = shards(out / "cache")
    given = (*teacher, *DISTILL, "--cache", str(out / "cache"))
    told = failing("distill", "--teacher", f"hf:{folder}", *given[2:], "--out", str(student[0]))
    expect("teacher" in told, told)
    expect(shards(out / "cache") == before, "the cache was touched")
    working("distill", *given, "--out", str(student[1]))
    return {"told": last(told), "with the old teacher": "trained on the cache"}


def absent_server(out: Path, teacher: tuple[str, ...]) -> dict[str, Any]:
    """A llama-cpp-python server, killed in the middle of a training and started again ten seconds later."""
    port, log, student = free_port(), out / "server.log", fresh(out / "served-student")
    # This server takes texts, not tokens: one that is cut may be read in other tokens, and would be left out.
    short = out / "short.jsonl"
    write_chats(short, exchanges((80, 160), longest_prompt=80))
    source = f"server:http://127.0.0.1:{port},model={NAME},top=20"
    given = (*teacher, *DISTILL, "--data", f"jsonl:{short}", "--batch-size", "2", "--max-length", "128")
    command = limbeck("distill", *given, "--signals", source, "--out", str(student))
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


def fresh(folder: Path) -> Path:
    """A folder that is not there: an interrupted trial begins anew."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


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


def shards(cache: Path) -> set[str]:
    """Digests of the shards of a cache and of its writers' parts, which keep them when they are merged."""
    return {path.stem.partition("-")[2] for path in cache.rglob("*.safetensors")}


def whole(cache: Path, kept: set[str], told: str) -> dict[str, Any]:
    """What a cache is after it was gone on with; what it had before must still be there."""
    after = shards(cache)
    expect(kept <= after, "a good shard is gone")
    working("cache", "verify", str(cache))
    rows = len(CacheReader(cache, verify="full"))
    return {"told": last(told), "shards kept": len(kept), "shards": len(after), "samples": rows}


def last(told: str) -> str:
    """The last line that says something, without the folder of the trials."""
    return re.sub(r"\S*/(?=(disk|cache|changed)\b)", "", told.strip().splitlines()[-1])


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    until = time.monotonic() + seconds
    while not there():
        expect(time.monotonic() < until, "nothing came that could be disturbed")
        if process.poll() is not None and not there():
            sys.exit(f"it ended too early: {process.communicate()[0]}")
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
