"""A training step of a language model from the teacher cache, against a live teacher and against none.

    python benchmarks/cached_language_model.py [--quick]

What ``limbeck distill --task causal-lm`` does: half of SmolLM2's layers learn from all of them on real chats, four
texts of at most 192 tokens a step. One side reads the teacher's log-probabilities from a cache in the default codec,
the other runs the teacher, or learns from the text alone. Every call takes the same batch. Reading has to stay under 3%
of a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from pairs import check, conclude, measure_pair

from limbeck.data.sharegpt import exchanges
from limbeck.job.plan import Plan, make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.teachers import teaching
from limbeck.job.train import cached_teacher, distiller_of, loader_of
from limbeck.objectives import CrossEntropy, Objective, total
from limbeck.sources import Source
from limbeck.testbeds.smollm2 import SmolLM2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats, to try the script; writes no result")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(1)
    repeats = 2 if quick else 11
    with tempfile.TemporaryDirectory() as folder:
        chats = Path(folder) / "chats.jsonl"
        chats.write_text("".join(json.dumps(row) + "\n" for row in itertools.islice(exchanges(), 20)))
        settings = Settings(
            f"hf:{SmolLM2().folder}", "slice:layers=even:15", f"jsonl:{chats}", folder, task="causal-lm",
            batch_size=4, max_length=192, steps=1, signals="cache",
        )  # fmt: skip
        plan = make_plan(settings)
        with teaching(plan) as live:
            cached = cached_teacher(plan, Path(folder) / "cache", live, Progress(quiet=True))
            batch = max(loader_of(plan, plan.data.splits.train, shuffle=False, live_teacher=True), key=tokens)
            from_cache = stepper(plan, plan.objective, cached, batch)
            against_live = measure_pair(from_cache, stepper(plan, plan.objective, live, batch), repeats, warmup=1)
            say(f"cache / live teacher: {against_live}")
            against_none = measure_pair(from_cache, stepper(plan, CrossEntropy(), None, batch), repeats, warmup=1)
            say(f"cache / no teacher:   {against_none}")
            read = reading(plan, cached, batch, 3 * repeats)
    seen = tokens(batch)
    result = {
        "teacher": "SmolLM2-135M-Instruct", "student": plan.student.describe(), "codec": plan.codec,
        "texts": len(batch["id"]), "tokens": seen, "precision": plan.precision,
        "step": {"cached_against_live": against_live.to_dict(), "cached_against_none": against_none.to_dict()},
        "tokens_per_second": {
            "cached": seen / against_live.a, "live": seen / against_live.b, "none": seen / against_none.b,
        },
        "read_seconds": read,
    }  # fmt: skip
    checks = [
        check("a step from the cache over one with a live teacher, time", against_live.ratio, at_most=1.0),
        check("reading over a step from the cache, time", read / against_live.a, at_most=0.03),
    ]
    conclude("cached_language_model", result, checks, quick=quick)


def tokens(batch: dict[str, Any]) -> int:
    """Of all texts of a batch, without padding."""
    return int(sum(batch["input"][name].sum() for name in ("prompt_mask", "answer_mask")))


def stepper(plan: Plan, objective: Objective, teacher: Source | None, batch: dict[str, Any]) -> Callable[[], None]:
    """A bare training step on the batch: signals, objective, backward, optimiser."""
    distiller = distiller_of(plan, objective, teacher)
    distiller.train()
    optimizer, _ = plan.optimizer.build(distiller.parameters(), 10_000)

    def run() -> None:
        ready = distiller.plain(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16-mixed"):
            signals = distiller.student_signals(ready), distiller.teacher_signals(ready)
            loss = total(distiller.objective(*signals, ready))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def reading(plan: Plan, cached: Source, batch: dict[str, Any], repeats: int) -> float:
    """Median seconds of what a cache does for a batch."""
    distiller = distiller_of(plan, plan.objective, cached)
    ready = distiller.plain(batch)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        distiller.teacher_signals(ready)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
