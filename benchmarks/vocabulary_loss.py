"""Time and peak memory of the chunked vocabulary losses against the plain path: forward and backward on CPU.

    python benchmarks/vocabulary_loss.py             # the claims: vocabularies of 131072 and 49152
    python benchmarks/vocabulary_loss.py --quick     # seconds, to see that it runs; writes nothing
    python benchmarks/vocabulary_loss.py --size "1024 x 256, 49k"   # one size anew, the others from the last result
    python benchmarks/vocabulary_loss.py --memory    # memory alone, of the two sizes that are compared

Plain is what one writes by hand with torch, the fastest such form: ``cross_entropy(linear(...))``, ``kl_div``
of two ``log_softmax``. Time: pairs in one process. Memory: each side alone in a fresh process, the highest
resident size during one step minus the size just before it; inputs and parameters are there before, the
gradients are not, and both sides must return them. ``without gradients`` takes their bytes off on both sides;
that is the memory which must not grow with the vocabulary, and its ratio between the two vocabularies is a claim.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import torch.nn.functional as F
from pairs import RESULTS, check, conclude, measure_pair
from torch import Tensor

from limbeck.losses import divergences
from limbeck.losses.vocabulary import linear_cross_entropy, linear_divergence, linear_sparse_divergence
from limbeck.signals import SparseLogits

CASES = ("cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon", "sparse_forward_kl")
SIZES = {
    "512 x 256": (512, 256, 131072),
    "1024 x 256": (1024, 256, 131072),
    "1024 x 512": (1024, 512, 131072),
    # SmolLM2's vocabulary.
    "1024 x 256, 49k": (1024, 256, 49152),
}
QUICK = {"64 x 32": (64, 32, 4096)}
MAIN, SMALLER = "1024 x 256", "1024 x 256, 49k"
TOP = 64


def step(case: str, side: str, rows: int, width: int, vocabulary: int) -> Callable[[], Tensor]:
    """One forward and backward pass of ``case``, by the ``chunked`` or the ``plain`` path."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape).normal_(std=scale, generator=generator)

    hidden, head = normal(rows, width), normal(vocabulary, width, scale=width**-0.5)
    hidden.requires_grad_()
    head.requires_grad_()
    target = torch.randint(vocabulary, (rows,), generator=generator)
    teacher_hidden, teacher_head = torch.empty(0), torch.empty(0)
    if not case.startswith(("cross", "sparse")):
        teacher_hidden, teacher_head = normal(rows, width), normal(vocabulary, width, scale=2 * width**-0.5)
    values = normal(rows, TOP).log_softmax(-1).sort(descending=True).values - 0.1
    # Clones, or every permutation would stay in memory as a whole.
    indices = torch.stack([torch.randperm(vocabulary, generator=generator)[:TOP].clone() for _ in range(rows)])
    sparse = SparseLogits(values, indices, torch.log1p(-values.exp().sum(-1)), vocabulary)

    def chunked() -> Tensor:
        if case == "cross_entropy":
            return linear_cross_entropy(hidden, head, target)
        if case == "sparse_forward_kl":
            return linear_sparse_divergence(hidden, head, sparse)
        return linear_divergence(hidden, head, teacher_hidden, teacher_head, divergence=case)

    def plain() -> Tensor:
        logits = F.linear(hidden, head)
        if case == "cross_entropy":
            return F.cross_entropy(logits, target)
        if case == "sparse_forward_kl":
            return divergences.forward_kl(logits, sparse)
        with torch.no_grad():
            teacher = F.linear(teacher_hidden, teacher_head).log_softmax(-1)
        student = logits.log_softmax(-1)
        del logits
        if case == "forward_kl":
            return F.kl_div(student, teacher, log_target=True, reduction="batchmean")
        if case == "reverse_kl":
            return F.kl_div(teacher, student, log_target=True, reduction="batchmean")
        middle = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
        halves = (F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (student, teacher))
        return 0.5 * sum(halves, start=torch.zeros(()))

    loss = chunked if side == "chunked" else plain

    def run() -> Tensor:
        hidden.grad = head.grad = None
        value = loss()
        value.backward()
        return value.detach()

    run.gradients = lambda: (hidden.grad, head.grad)  # type: ignore[attr-defined]
    return run


def peak_bytes(case: str, side: str, rows: int, width: int, vocabulary: int) -> int:
    """Peak resident bytes of one step in a fresh process, over the bytes just before it."""
    command = [sys.executable, __file__, "--measure", case, side, str(rows), str(width), str(vocabulary)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(out.strip().splitlines()[-1]))


def measure_here(case: str, side: str, size: tuple[int, int, int]) -> int:
    # The libraries' own buffers exist after a small step, and freed memory is given back before the large
    # one.
    step(case, side, 8, 8, 64)()
    run = step(case, side, *size)
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, _resident())
            time.sleep(0.001)

    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    # ru_maxrss is exact where the step went above all that came before; else the watcher has to do.
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (after if after > mark else highest) - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def compare(case: str, size: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    sides = {side: step(case, side, *size) for side in ("chunked", "plain")}
    results = {side: (run(), *(g.clone() for g in run.gradients())) for side, run in sides.items()}  # type: ignore[attr-defined]
    differences = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(*results.values(), strict=True)
    ]
    del results
    pair = measure_pair(sides["chunked"], sides["plain"], repeats=repeats, warmup=1)
    del sides
    return {
        **memory(case, size),
        "time": pair.to_dict(),
        "largest_relative_difference": dict(zip(("value", "hidden", "head"), differences, strict=True)),
    }


def memory(case: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """Peaks of both sides and what they are to each other."""
    chunked, plain = (peak_bytes(case, side, *size) for side in ("chunked", "plain"))
    rows, width, vocabulary = size
    gradients = 4 * width * (rows + vocabulary)
    return {
        "rows": rows, "width": width, "vocabulary": vocabulary,
        "peak_bytes": {"chunked": chunked, "plain": plain, "gradients": gradients},
        "memory_ratio": chunked / plain,
        "memory_ratio_without_gradients": (chunked - gradients) / (plain - gradients),
    }  # fmt: skip


def own_bytes(entry: dict[str, Any], side: str) -> int:
    """Peak bytes of a side, without the gradients that it returns."""
    return int(entry["peak_bytes"][side]) - int(entry["peak_bytes"]["gradients"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=tuple(SIZES), action="append", help="measure this one anew, not all")
    parser.add_argument("--memory", action="store_true", help="measure memory alone, at both vocabularies")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="with more, a busy machine times its neighbours")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, side, *size = options.measure
        rows, width, vocabulary = (int(x) for x in size)
        print(json.dumps(measure_here(case, side, (rows, width, vocabulary))))
        return
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else {name: SIZES[name] for name in options.size or SIZES}
    results: dict[str, Any] = {}
    if options.size or options.memory:
        results = json.loads((RESULTS / "vocabulary_loss.json").read_text(encoding="utf-8"))["result"]
    if options.memory:
        for case in CASES:
            for name in (MAIN, SMALLER):
                results.setdefault(f"{case}, {name}", {}).update(memory(case, SIZES[name]))
        judge(results)
        return
    print(
        f"{'rows x width':15s} {'loss':18s} {'chunked / plain time':34s}"
        f" {'peak MiB':>14s} {'ratio':>6s} {'w/o grads':>9s}"
    )
    for name, size in sizes.items():
        for case in CASES if options.quick or name in (MAIN, SMALLER) else CASES[:2]:
            entry = compare(case, size, options.repeats)
            results[f"{case}, {name}"] = entry
            low, high = entry["time"]["interval"]
            seconds = f"{entry['time']['a']:.2f}/{entry['time']['b']:.2f} s"
            spent = f"{seconds} = {entry['time']['ratio']:.2f} [{low:.2f}, {high:.2f}]"
            peaks = "/".join(f"{entry['peak_bytes'][side] / 2**20:.0f}" for side in ("chunked", "plain"))
            ratios = f"{entry['memory_ratio']:6.3f} {entry['memory_ratio_without_gradients']:9.3f}"
            print(f"{name:15s} {case:18s} {spent:34s} {peaks:>14s} {ratios}", flush=True)
    if options.quick:
        return
    judge(results)


def judge(results: dict[str, Any]) -> None:
    """Hold the results against the claims, write both down and show them."""
    checks = []
    for case in CASES:
        for name in (MAIN, SMALLER):
            entry = results[f"{case}, {name}"]
            # Gradients, which both sides return, weigh more where there are fewer logits.
            share = 1 / 6 if name == MAIN else 1 / 3
            checks.append(check(f"{case}: peak memory over plain, {name}", entry["memory_ratio"], at_most=share))
            if "time" not in entry:
                continue
            checks.append(check(f"{case}: time over plain, {name}", entry["time"]["ratio"], at_most=1.0))
            difference = max(entry["largest_relative_difference"].values())
            checks.append(check(f"{case}: largest relative difference from plain, {name}", difference, at_most=1e-4))
        large, small = (results[f"{case}, {name}"] for name in (MAIN, SMALLER))
        growth = {side: own_bytes(large, side) / own_bytes(small, side) for side in ("chunked", "plain")}
        large["memory_growth_from_49152"] = growth
        checks.append(check(f"{case}: memory at 131072 over memory at 49152 classes", growth["chunked"], at_most=1.15))
    conclude("vocabulary_loss", results, checks)


if __name__ == "__main__":
    main()
