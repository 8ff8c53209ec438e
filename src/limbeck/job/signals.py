"""``limbeck cache``: a teacher's signals on a whole data set, kept on disk for later trainings."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.cache import CacheReader, tools
from limbeck.errors import LimbeckError, UserError
from limbeck.job.plan import make_plan
from limbeck.job.progress import Progress
from limbeck.job.served import Address, is_served, note_unread
from limbeck.job.settings import Settings
from limbeck.job.teachers import teaching
from limbeck.job.train import cache_costs, cached_teacher, kept_signals
from limbeck.report.tables import format_duration, format_value

Part = tuple[int, int]
# Seconds that writers have to write what they hold, once they are asked to stop.
_PATIENCE = 30.0


def write_signals(
    settings: Settings, *, writers: int = 1, part: Part | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Fill the cache ``settings.out`` and describe it; a later ``distill`` with ``--cache`` finds every sample there.

    The teacher stands in for the student, so that a plan also checks that teacher and data fit together; for one behind
    a server the folder of its tokenizer does.

    Args:
        writers: processes of this machine that write side by side, each with a teacher of its own; their parts are
            made one in the end.
        part: number of this writer and of how many, where others write elsewhere; ``limbeck cache merge`` makes one.
    """
    if writers < 1 or (writers > 1 and part is not None):
        raise UserError("writers", writers, "1 or more" if part is None else "1, with a part")
    out = Path(settings.out)
    plan = make_plan(replace(settings, student=_stand_in(settings.teacher), signals=settings.signals or "cache"))
    progress = Progress(quiet)
    with teaching(plan) as live:
        expected = cache_costs(plan, live, writers if part is None else part[1])
        progress.say(
            f"{expected.samples:,} samples: {format_value('bytes', expected.bytes)} on disk "
            f"({expected.bytes_per_position:.0f} bytes a {'token' if plan.language else 'sample'}), "
            f"{format_duration(expected.seconds)}"
        )
        if writers == 1:
            cached_teacher(plan, out, live, progress, part)
    if writers > 1:
        _side_by_side(settings, writers)
        tools.merge(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    samples = len(plan.data.splits.train) * plan.views
    found = {
        "folder": str(out),
        "samples": samples,
        "signals": list(kept_signals(plan)),
        "codec": plan.codec,
        "bytes": size,
        "bytes_per_sample": size / samples,
        "expected_bytes": expected.bytes,
        "expected_seconds": expected.seconds,
    }
    if plan.language is not None:
        tokens = plan.language.positions()
        found |= {"tokens": tokens, "bytes_per_token": size / tokens}
        if plan.address is not None:
            note_unread(plan.language, live, CacheReader(out))
            found["left_out"] = plan.language.unread["texts"][0]
    return found


def _stand_in(teacher: Any) -> Any:
    if not is_served(teacher):
        return teacher
    address = Address.parse(teacher, "teacher")
    if not address.tokenizer:
        hint = "the folder of the student, whose tokenizer reads the data"
        raise UserError("teacher", teacher, "server:URL,model=NAME,tokenizer=hf:FOLDER", hint)
    return address.tokenizer


def _side_by_side(settings: Settings, writers: int) -> None:
    """Every part by a process of its own; a part that fails fails all, and a later call goes on with each.

    Ctrl-C reaches all processes of a terminal at once. The writers leave it to this one, which asks them to stop and
    waits, for a while, until they have written what they hold.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // writers)
    running = [
        context.Process(target=_write_part, args=(settings, (number, writers), threads)) for number in range(writers)
    ]
    try:
        with _deaf():
            for process in running:
                process.start()
        for process in running:
            process.join()
    finally:
        with _deaf():
            _end([process for process in running if process.pid is not None])
    failed = [number for number, process in enumerate(running) if process.exitcode]
    if failed:
        raise LimbeckError(f"writers {failed} of {writers} stopped; what is written is kept, the same call goes on")


def _end(started: list[Any]) -> None:
    for process in started:
        process.terminate()
    for process in started:
        process.join(_PATIENCE)
        # One that neither ends nor answers is in a batch that takes longer than anybody waits.
        process.kill()


@contextmanager
def _deaf() -> Iterator[None]:
    """Without Ctrl-C, here and in processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread is ever interrupted, and only it may say so.
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write_part(settings: Settings, part: Part, threads: int) -> None:
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(threads)
    try:
        write_signals(settings, part=part, quiet=part[0] > 0)
    except LimbeckError as error:
        print(f"limbeck: writer {part[0]}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _stop(*_: object) -> None:
    # An orderly end: a cache that is being written is closed on the way.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)
