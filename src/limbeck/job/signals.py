"""``limbeck cache``: a teacher's signals on a whole data set, kept on disk for later trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.job.plan import make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.train import cached_teacher, teaching


def write_signals(
    teacher: str, data: str, out: Path, *, task: str | None, codec: str, allow_py: bool, quiet: bool = False
) -> dict[str, Any]:
    """Fill the cache ``out`` and describe it; a later ``distill`` with ``--cache OUT`` finds every sample there."""
    # The teacher stands in for a student: a plan also checks that teacher and data fit together.
    settings = Settings(teacher=teacher, student=teacher, data=data, out=str(out), task=task, allow_py=allow_py)
    plan = make_plan(settings)
    with teaching(plan) as live:
        cached_teacher(plan, out, live, Progress(quiet), codec=codec)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    samples = len(plan.data.splits.train)
    return {
        "folder": str(out),
        "samples": samples,
        "signals": list(plan.objective.needs.teacher),
        "codec": codec,
        "bytes": size,
        "bytes_per_sample": size / samples,
    }
