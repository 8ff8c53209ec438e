"""``limbeck cache``: a teacher's signals on a whole data set, kept on disk for later trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.job.plan import make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.teachers import teaching
from limbeck.job.train import cache_costs, cached_teacher, kept_signals
from limbeck.report.tables import format_duration, format_value


def write_signals(settings: Settings, quiet: bool = False) -> dict[str, Any]:
    """Fill the cache ``settings.out`` and describe it; a later ``distill`` with ``--cache`` finds every sample there.

    ``settings.student`` is left open: the teacher stands in for it, so that a plan also checks that teacher and data
    fit together.
    """
    out = Path(settings.out)
    plan = make_plan(replace(settings, student=settings.teacher, signals=settings.signals or "cache"))
    progress = Progress(quiet)
    with teaching(plan) as live:
        expected = cache_costs(plan, live)
        progress.say(
            f"{expected.samples:,} samples: {format_value('bytes', expected.bytes)} on disk "
            f"({expected.bytes_per_position:.0f} bytes a {'token' if plan.language else 'sample'}), "
            f"{format_duration(expected.seconds)}"
        )
        cached_teacher(plan, out, live, progress)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    samples = len(plan.data.splits.train)
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
        tokens = plan.language.learnt("train")
        found |= {"tokens": tokens, "bytes_per_token": size / tokens}
    return found
