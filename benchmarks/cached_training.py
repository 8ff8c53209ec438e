"""Training from the teacher cache against training without any teacher, and how fast a cache is read.

    python benchmarks/cached_training.py [--quick]

The work is a small image classifier's: 28 x 28 images, batches of 128. One side learns from labels alone, the
other from labels and cached logits, cross-entropy + KL. The images are noise, since no step takes longer or
shorter for what a picture shows. ``step`` is the bare step (loader, signals, objective, backward, optimiser),
``fit`` a whole ``limbeck.engine.fit`` with its set-up. The target is a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pairs import check, conclude, measure_pair
from torch import Tensor, nn

from limbeck.cache import CacheReader, CacheWriter, write_cache
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.models.small import small_cnn
from limbeck.objectives import KL, CrossEntropy, Objective, total
from limbeck.sources import Cached, Live, Source

BATCH = 128
STEPS = 5
CODECS = ("float32", "float16", "bfloat16", "int8", "topk:32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats, to try the script; writes no result")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        training, checks = training_pairs(Path(folder) / "training", quick)
        reading = reading_speed(Path(folder) / "reading", quick)
    conclude("cached_training", {"training": training, "reading": reading}, checks, quick=quick)


def training_pairs(folder: Path, quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The pairs with and without cached teacher, and their checks."""
    count = 2_560 if quick else 5_120
    data = Split(torch.randn(count, 1, 28, 28), torch.randint(0, 10, (count,)), torch.arange(count) * 7 + 3)
    live = Live(small_cnn("300k"))
    write_cache(live, data.batches(512), folder, ["logits"])
    cached, both = Cached(folder), 0.1 * CrossEntropy() + 0.9 * KL(temperature=4)
    pairs = {
        "step": measure_pair(
            stepper(data, both, cached), stepper(data, CrossEntropy(), None), 5 if quick else 61, warmup=3
        ),
        "fit": measure_pair(
            fitter(data, both, cached), fitter(data, CrossEntropy(), None), 2 if quick else 9, warmup=1
        ),
        # Not a target: what the cache saves.
        "step_live_teacher": measure_pair(
            stepper(data, both, live), stepper(data, CrossEntropy(), None), 3 if quick else 11, warmup=2
        ),
    }
    batches = list(TensorLoader(data, BATCH))
    lookup = median_seconds(lambda: [cached(batch, ["logits"]) for batch in batches], 3 if quick else 15)
    training = {name: pair.to_dict() for name, pair in pairs.items()}
    training["lookup"] = {
        "seconds_per_batch": lookup / len(batches),
        "share_of_step": lookup / len(batches) / (pairs["step"].a / STEPS),
    }
    for name, pair in pairs.items():
        say(f"{name:18} with / without: {pair}")
    share = training["lookup"]["share_of_step"]
    say(f"looking up a batch: {lookup / len(batches) * 1e6:.0f} us, {share:.2%} of a step")
    checks = [
        check(
            "a training step from the cache against none without teacher, time",
            pairs["step"].ratio,
            at_most=1.05,
        ),
        check("a whole fit from the cache against one without teacher, time", pairs["fit"].ratio, at_most=1.05),
    ]
    return training, checks


def stepper(data: Split, objective: Objective, teacher: Source | None) -> Callable[[], None]:
    """``STEPS`` bare training steps, going on through the data from call to call."""
    distiller = Distiller(new_student(), objective, teacher)
    distiller.train()
    optimizer, _ = OptimizerSettings().build(distiller.parameters(), 10_000)
    loader = TensorLoader(data, BATCH, drop_last=True)
    endless: Iterator[dict[str, Any]] = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())

    def run() -> None:
        for batch in itertools.islice(endless, STEPS):
            loss = total(distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def fitter(data: Split, objective: Objective, teacher: Source | None) -> Callable[[], None]:
    """One epoch of an ordinary run."""

    def run() -> None:
        distiller = Distiller(new_student(), objective, teacher)
        fit(distiller, TensorLoader(data, BATCH, drop_last=True), epochs=1)

    return run


def new_student() -> nn.Module:
    torch.manual_seed(1)
    return small_cnn("16k")


def reading_speed(folder: Path, quick: bool) -> dict[str, Any]:
    """Samples and megabytes per second of 1000-class logits by codec, shuffled and in order."""
    count, classes, size = (4_096, 1000, 256) if quick else (32_768, 1000, 256)
    logits = torch.randn(count, classes) * 4
    shuffled, ordered = torch.randperm(count).split(size), torch.arange(count).split(size)
    result: dict[str, Any] = {"samples": count, "classes": classes, "batch_size": size}

    def table() -> list[Tensor]:
        return [logits[ids] for ids in shuffled]

    repeats = 2 if quick else 5
    memory = median_seconds(table, repeats)
    result["memory"] = {
        "shuffled_samples_per_second": count / memory,
        "decoded_megabytes_per_second": logits.nbytes / 1e6 / memory,
    }
    say(f"{'memory':9} {count / memory:10.0f} samples/s shuffled")
    for codec in CODECS:
        place = folder / codec.replace(":", "_")
        with CacheWriter(place, {"teacher": "noise"}, codec) as writer:
            start = time.perf_counter()
            for ids in ordered:
                writer.write(ids, {"logits": logits[ids]})
            writer.flush()
            writing = time.perf_counter() - start
        reader = CacheReader(place, verify="full")
        random = median_seconds(lambda r=reader: [r.read(ids) for ids in shuffled], repeats)
        straight = median_seconds(lambda r=reader: [r.read(ids) for ids in ordered], repeats)
        stored = reader.manifest.bytes
        result[codec] = {
            "bytes_per_sample": stored / count,
            "shuffled_samples_per_second": count / random,
            "ordered_samples_per_second": count / straight,
            "shuffled_stored_megabytes_per_second": stored / 1e6 / random,
            "ordered_stored_megabytes_per_second": stored / 1e6 / straight,
            "written_samples_per_second": count / writing,
        }
        say(
            f"{codec:9} {count / random:10.0f} samples/s shuffled, {count / straight:10.0f} in order, "
            f"{stored / 1e6 / random:6.0f} MB/s, {stored / count:6.0f} bytes per sample, "
            f"{count / writing:8.0f} written/s"
        )
    return result


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
