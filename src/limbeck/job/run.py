"""``distill``: from three references to a student, a report and everything needed to trust them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine import History
from limbeck.errors import UserError
from limbeck.export import export
from limbeck.job import output
from limbeck.job.assess import assess, costs, fidelity
from limbeck.job.plan import Plan, example_inputs, frozen_copy, make_plan
from limbeck.job.preview import preview
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.train import cached_teacher, teaching, train_baseline, train_student
from limbeck.sources import Source

#: What the table calls the three networks.
TEACHER, BASELINE, STUDENT = "teacher", "student without distillation", "student"


def distill(
    teacher: Any = "", student: Any = "", data: Any = "", out: str | Path = "", *, quiet: bool = False, **settings: Any
) -> dict[str, Any]:
    """Distil ``teacher`` into ``student`` on ``data``, and measure what was kept and what was gained.

    Args:
        teacher, student: references (``hf:``, ``timm:``, ``pt2:``, ``py:``; the student also ``slice:`` and
            ``width:``), or networks of your own.
        data: a reference (``folder:``, ``parquet:``, ``csv:``, ``jsonl:``, ``hf:``, ``testbed:``, ``py:``), or a
            :class:`~limbeck.data.references.DataSet`.
        out: the folder of the student, its report and all that a resumed run needs.
        quiet: no bars and no tables.
        settings: anything else of :class:`~limbeck.job.Settings`.

    Returns:
        The result that ``OUT/result.json`` holds: the table of the three networks, curves, plan and manifest. With
        ``dry_run=True`` the plan and its measured costs.
    """
    return run(Settings(teacher, student, data, str(out), **settings), Progress(quiet))


def run(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Carry out one job."""
    started = time.time()
    out = _open(settings) if settings.out and not settings.dry_run else None
    torch.manual_seed(settings.seed)
    plan = make_plan(settings)
    output.show_plan(plan, progress)
    start = frozen_copy(plan.student.module)
    with teaching(plan) as live:
        if settings.dry_run or out is None:
            return preview(plan, live, progress)
        output.write_settings(out, settings)
        source: Source | None = live if plan.objective.needs.teacher else None
        if plan.cached:
            folder = Path(settings.cache) if settings.cache else out / "cache"
            source = cached_teacher(plan, folder, live, progress)
        history = train_student(plan, source, out / "training", progress)
        fingerprint = live.fingerprint()
    learned = frozen_copy(plan.student.module)
    models, baseline_history = _measure(plan, start, learned, out, progress)
    plan.student.save(output.fresh_folder(out / "student"))
    exports = _export(plan, out, progress)
    result = output.result_of(
        plan, models, _curves(history, baseline_history), exports, fingerprint, time.time() - started
    )
    output.write_result(out, plan, result)
    output.show_result(result, out, progress)
    return result


def _open(settings: Settings) -> Path:
    out = Path(settings.out)
    if (out / "result.json").exists() and not (settings.overwrite or settings.resume):
        raise UserError("out", str(out), "a new folder", "it holds a finished run; --overwrite replaces it")
    if out.is_file():
        raise UserError("out", str(out), "a folder", "a file of that name is there")
    if (out / "training").exists() and not (settings.overwrite or settings.resume):
        raise UserError("out", str(out), "a new folder", "it holds an interrupted run; --resume continues it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.write_bytes(b"limbeck")
        probe.unlink()
    except OSError as error:
        raise UserError("out", str(out), "a folder that can be written", str(error.strerror)) from None
    if settings.overwrite:
        output.clear(out)
    return out


def _measure(
    plan: Plan, start: dict[str, Tensor], learned: dict[str, Tensor], out: Path, progress: Progress
) -> tuple[dict[str, dict[str, float]], History | None]:
    """Quality, agreement and cost of teacher, baseline and student, all on the test samples."""
    module, history = plan.student.module, None
    progress.say("measuring on the test samples ...")
    teacher = assess(plan, plan.teacher, "test")
    student = assess(plan, plan.student, "test")
    table = {TEACHER: dict(teacher.quality)}
    if plan.baseline != "none":
        module.load_state_dict(start)
        if plan.baseline == "trained":
            history = train_baseline(plan, start, out / "baseline", progress)
        other = assess(plan, plan.student, "test")
        table[BASELINE] = {**other.quality, **fidelity(plan, teacher, other)}
        module.load_state_dict(learned)
    table[STUDENT] = {**student.quality, **fidelity(plan, teacher, student)}
    progress.say("measuring size and speed ...")
    plan.student.module.eval()
    plan.teacher.module.eval()
    cost = costs(plan, {TEACHER: plan.teacher, STUDENT: plan.student})
    table[TEACHER] |= cost[TEACHER]
    table[STUDENT] |= cost[STUDENT]
    if BASELINE in table:
        # The same network with other weights costs the same.
        table[BASELINE] |= cost[STUDENT]
    return table, history


def _export(plan: Plan, out: Path, progress: Progress) -> list[dict[str, Any]]:
    reports = []
    for form in plan.settings.export:
        progress.say(f"exporting to {form} and comparing ...")
        samples = example_inputs(plan.student, plan.data.splits.test.input, 16)
        report = export(plan.student.module, samples, out / f"student.{form}", to=form)
        reports.append(report.to_dict())
    return reports


def _curves(history: History, baseline: History | None) -> dict[str, dict[str, list[float]]]:
    curves = {name: history.curve(name) for name in history.names()}
    if baseline is not None:
        curves |= {
            f"{name} (without distillation)": baseline.curve(name)
            for name in baseline.names()
            if name.startswith("validation/")
        }
    return curves


def read_result(out: Path) -> dict[str, Any]:
    """The result of a finished run."""
    path = Path(out) / "result.json"
    if not path.exists():
        raise UserError("run", str(out), "the --out folder of a finished run", f"{path.name} is missing")
    result: dict[str, Any] = json.loads(path.read_text())
    return result
