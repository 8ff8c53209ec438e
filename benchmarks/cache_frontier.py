"""Bytes per token against KL to the uncompressed teacher, for every codec of logits, on a real language model.

    python benchmarks/cache_frontier.py [--quick]

The teacher is SmolLM2-135M-Instruct; the text, 51,000 tokens of the Linux manual in its own order, 256 tokens at a
time. Every codec sees the same logits. KL is of the whole vocabulary, the decoded rest mass being spread evenly over
the classes that were not kept. The yardstick is plain top-32: bfloat16 log-probabilities with int32 classes, 192 bytes.
Then a half-depth student takes training steps on such a cache: reading must be a small part of a step.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from pairs import check, conclude
from torch import Tensor, nn

from limbeck.cache import CacheReader, CacheWriter
from limbeck.cache.frontier import CODECS, Frontier
from limbeck.data.artefacts import fetch
from limbeck.losses import forward_kl
from limbeck.nn.transfer import keep_layers
from limbeck.testbeds.manpages_corpus import ARTEFACTS, prose
from limbeck.testbeds.smollm2 import SmolLM2

WINDOW, BATCH = 256, 4
WHOLE = ("float16", "int8")
PLAIN, PLAIN_BYTES = "topk:32:bfloat16", 32 * (2 + 4)
CHOSEN = "above:0.0008:128"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens, to try the script; writes no result")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(1)
    world = SmolLM2()
    teacher = world.teacher()
    tokens = windows(world.tokenizer, 2 if quick else 200)
    # Codecs of whole logits take most of the time, and their error hardly differs from text to text.
    frontier, whole = Frontier([name for name in CODECS if name not in WHOLE]), Frontier(WHOLE)
    started = time.perf_counter()
    with torch.inference_mode():
        for number, batch in enumerate(tokens.split(BATCH)):
            logits = teacher(batch).logits[:, :-1]
            frontier.add(logits)
            if number % 10 == 0:
                whole.add(logits)
            if not quick:
                near = next(point for point in frontier.points() if point.codec == CHOSEN)
                say(f"{frontier.rows} tokens, {time.perf_counter() - started:.0f} s, {near}")
    points = {point.codec: point for point in [*frontier.points(), *whole.points()]}
    say(f"{'codec':20} {'bytes':>8} {'KL':>8} {'kept':>7} {'classes':>8}")
    for point in points.values():
        say(f"{point.codec:20} {point.bytes:8.1f} {point.kl:8.4f} {point.kept:7.3f} {point.classes:8.1f}")
    reading = reading_share(teacher, tokens[:BATCH], 1 if quick else 3)
    say(f"reading a batch: {reading['read_seconds'] * 1e3:.1f} ms, {reading['share_of_step']:.2%} of a step")
    best = min((point for point in points.values() if point.bytes <= 100), key=lambda point: point.kl)
    checks = [
        check(f"{CHOSEN}: bytes per token", points[CHOSEN].bytes, at_most=100),
        check(f"{CHOSEN}: KL over plain top-32's in bfloat16", points[CHOSEN].kl / points[PLAIN].kl, at_most=1.0),
        check("reading over a training step of a half-depth student, time", reading["share_of_step"], at_most=0.03),
    ]
    result = {
        "teacher": "SmolLM2-135M-Instruct", "text": "Linux manual pages", "window": WINDOW,
        "tokens": frontier.rows, "tokens_of_whole_logits": whole.rows,
        "plain": {"codec": PLAIN, "bytes": PLAIN_BYTES, "kl": points[PLAIN].kl},
        "best_within_100_bytes": best.codec,
        "points": [point.to_dict() for point in points.values()],
        "reading": reading,
    }  # fmt: skip
    conclude("cache_frontier", result, checks, quick=quick)


def windows(tokenizer: Any, count: int) -> Tensor:
    """``[count, WINDOW]`` tokens: up to four windows of a page, of pages from all of the manual."""
    paths = [path for artefact in ARTEFACTS for path in sorted(fetch(artefact).rglob("*.gz"))]
    # 997 has no common factor with the number of pages: a scattered order.
    scattered = (paths[place * 997 % len(paths)] for place in range(len(paths)))
    rows: list[list[int]] = []
    for path in scattered:
        rows += list(page(tokenizer, path))[:4]
        if len(rows) >= count:
            return torch.tensor(rows[:count])
    sys.exit(f"the manual has only {len(rows)} windows")


def page(tokenizer: Any, path: Path) -> Iterator[list[int]]:
    text = " ".join(prose(gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")))
    ids = tokenizer(text).input_ids
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        yield ids[start : start + WINDOW]


def reading_share(teacher: nn.Module, tokens: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of reading a batch from a cache, and of a training step of the teacher's every second layer."""
    ids, mask = torch.arange(len(tokens)), torch.ones(len(tokens), WINDOW - 1, dtype=torch.bool)
    with tempfile.TemporaryDirectory() as folder:
        with CacheWriter(folder, {"teacher": "benchmark"}, CHOSEN, ragged=["logits"]) as writer, torch.no_grad():
            writer.write(ids, {"logits": teacher(tokens).logits[:, :-1]}, mask=mask)
        reader = CacheReader(folder, verify="full")
        student = keep_layers(teacher, range(0, 30, 2)).requires_grad_(True).train()
        optimizer = torch.optim.AdamW(student.parameters())
        reads, steps = [], []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            signal = reader.read(ids, names=["logits"], mask=mask)["logits"]
            read = time.perf_counter()
            forward_kl(student(tokens).logits[:, :-1], signal).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            reads.append(read - start)
            steps.append(time.perf_counter() - start)
    seconds = statistics.median(reads[1:]), statistics.median(steps[1:])
    return {
        "tokens": float(mask.sum()), "read_seconds": seconds[0], "step_seconds": seconds[1],
        "share_of_step": seconds[0] / seconds[1], "tokens_read_per_second": float(mask.sum()) / seconds[0],
    }  # fmt: skip


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
