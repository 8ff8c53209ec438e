"""Timings as pairs in one run: two pieces of work alternate, so that a busy machine slows both alike.

from pairs import check, conclude, measure_pair
pair = measure_pair(ours, yardstick, repeats=21, warmup=3)
conclude("training_step", {"image": pair.to_dict()}, [check("time", pair.ratio, at_most=1.03)])
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Pair:
    """Seconds of two pieces of work ``a`` and ``b``, and the ratio a / b (under 1: ``a`` is the faster).

    Attributes:
        a, b: median seconds of one repeat.
        ratio: median over repeats of a_i / b_i, where the two runs of a repeat follow each other directly.
        interval: 95% bootstrap interval of that median.
        seconds_a, seconds_b: every repeat, in order.
    """

    a: float
    b: float
    ratio: float
    interval: tuple[float, float]
    repeats: int
    warmup: int
    seconds_a: tuple[float, ...]
    seconds_b: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.a * 1e3:.2f} ms / {self.b * 1e3:.2f} ms = {self.ratio:.3f} [{low:.3f}, {high:.3f}]"


def measure_pair(
    a: Callable[[], Any], b: Callable[[], Any], repeats: int = 21, warmup: int = 3, *, seed: int = 0
) -> Pair:
    """Run ``a`` and ``b`` in turn (a b, b a, a b, ...) and compare them repeat by repeat.

    Args:
        a: the work to judge, one call per repeat. Work that returns a float has timed itself, in seconds, and left
            out what is not to be compared (set-up).
        b: the yardstick.
        repeats: measured calls of each.
        warmup: calls of each before the measurement.
        seed: of the bootstrap.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, given {repeats}")
    for _ in range(warmup):
        a()
        b()
    first: list[float] = []
    second: list[float] = []
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            # Alternating which comes first cancels what one leaves behind in caches for the other.
            for work, seconds in ((a, first), (b, second)) if turn % 2 == 0 else ((b, second), (a, first)):
                seconds.append(_seconds(work))
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    ratios = [one / other for one, other in zip(first, second, strict=True)]
    return Pair(
        statistics.median(first),
        statistics.median(second),
        statistics.median(ratios),
        median_interval(ratios, seed=seed),
        repeats,
        warmup,
        tuple(first),
        tuple(second),
    )


def median_interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the median of ``values``."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def check(text: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """One claim of a benchmark with its target and whether it held."""
    passed = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    target = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
    return {"text": text, "value": value, **target, "passed": passed}


def conclude(name: str, result: Mapping[str, Any], checks: Sequence[Mapping[str, Any]], *, quick: bool = False) -> None:
    """The end of a benchmark: say every check, write the result unless ``quick``, fail on a missed target."""
    for one in checks:
        print("ok  " if one["passed"] else "FAIL", f"{one['text']}: {one['value']:.3g}", flush=True)
    if not quick:
        write_result(name, result, checks)
    if not all(one["passed"] for one in checks):
        sys.exit("a target was missed")


def write_result(name: str, result: Mapping[str, Any], checks: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write ``benchmarks/results/NAME.json``: the result, its checks, the machine and the versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    whole = {
        "name": name,
        "checks": list(checks),
        "result": dict(result),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **_versions("torch", "lightning", "safetensors")},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    return path


def _seconds(work: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    result = work()
    _wait()
    return result if isinstance(result, float) else time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
