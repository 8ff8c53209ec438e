"""``distill``: from three references to a student, a report and everything needed to trust them."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine import History
from limbeck.errors import UserError
from limbeck.export import export
from limbeck.job import output
from limbeck.job.assess import assess, costs, fidelity
from limbeck.job.checks import check_step, check_surroundings
from limbeck.job.finished import go_on
from limbeck.job.plan import Plan, example_inputs, frozen_copy, make_plan
from limbeck.job.preview import preview
from limbeck.job.progress import Progress
from limbeck.job.references import keep_decoded
from limbeck.job.served import note_unread
from limbeck.job.settings import Settings
from limbeck.job.teacher_texts import write_teacher_texts
from limbeck.job.teachers import teaching
from limbeck.job.train import cached_teacher, train_baseline, train_student
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
    settings = settings.complete()
    # Lightning's own use of torch; one line per training that nobody can act on.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    if settings.resume and settings.out and not settings.overwrite:
        settings = output.continued(settings)
    settings.check()
    if settings.resume and settings.out and (Path(settings.out) / "result.json").exists():
        progress.say(f"{settings.out} holds a finished run: nothing is trained again")
        result = go_on(settings)
        output.show_result(result, Path(settings.out), progress)
        return result
    check_surroundings(settings)
    out = _open(settings) if settings.out and not settings.dry_run else None
    torch.manual_seed(settings.seed)
    plan = make_plan(settings)
    output.show_plan(plan, progress)
    start = frozen_copy(plan.student.module)
    with teaching(plan) as live:
        check_step(plan, live)
        keep_decoded(plan, progress)
        if settings.dry_run or out is None:
            return preview(plan, live, progress)
        if settings.overwrite:
            output.clear(out)
        output.write_settings(out, settings)
        write_teacher_texts(plan, out, live, progress)
        source: Source | None = live if plan.objective.needs.teacher else None
        if plan.cached:
            folder = Path(settings.cache) if settings.cache else out / "cache"
            source = cached_teacher(plan, folder, live, progress)
        history = train_student(plan, source, out / "training", progress)
        if plan.language is not None and source is live:
            note_unread(plan.language, live)
        fingerprint = live.fingerprint()
    learned = frozen_copy(plan.student.module)
    models, reliability, baseline = _measure(plan, start, learned, out, progress)
    plan.student.save(output.fresh_folder(out / "student"))
    exports = _export(plan, out, progress)
    pictures = {"curves": _curves(plan, history, baseline), "reliability": reliability}
    result = output.result_of(plan, models, pictures, exports, fingerprint, time.time() - started, history.seconds)
    output.write_result(out, plan, result)
    output.show_result(result, out, progress)
    return result


def _open(settings: Settings) -> Path:
    out = Path(settings.out)
    if out.is_file():
        raise UserError("out", str(out), "a folder", "a file of that name is there")
    output.refuse_foreign(out)
    if not (settings.overwrite or settings.resume):
        if (out / "result.json").exists():
            raise UserError("out", str(out), "a new folder", "it holds a finished run; --overwrite replaces it")
        if (out / "training").exists():
            raise UserError("out", str(out), "a new folder", "it holds an interrupted run; --resume continues it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.write_bytes(b"limbeck")
        probe.unlink()
    except OSError as error:
        raise UserError("out", str(out), "a folder that can be written", str(error.strerror)) from None
    return out


def _measure(
    plan: Plan, start: dict[str, Tensor], learned: dict[str, Tensor], out: Path, progress: Progress
) -> tuple[dict[str, dict[str, float]], dict[str, Any], History | None]:
    """Quality, agreement and cost of teacher, baseline and student on the test samples, and reliability diagrams."""
    module, history = plan.student.module, None
    progress.say("measuring on the test samples ...")
    found = {name: assess(plan, network, "test") for name, network in plan.networks.items()}
    if plan.baseline != "none":
        module.load_state_dict(start)
        if plan.baseline == "trained":
            history = train_baseline(plan, start, out / "baseline", progress)
        found[BASELINE] = assess(plan, plan.student, "test")
        module.load_state_dict(learned)
    progress.say("measuring size and speed ...")
    for network in plan.networks.values():
        network.module.eval()
    cost = costs(plan, plan.networks)
    # The same network with other weights costs the same.
    cost[BASELINE] = cost[STUDENT]
    table = {}
    for name in (TEACHER, BASELINE, STUDENT):
        if name in found:
            kept = fidelity(plan, found.get(TEACHER), found[name]) if name != TEACHER else {}
            table[name] = {**found[name].quality, **kept, **cost[name]}
    return table, {name: found[name].reliability for name in table if found[name].reliability}, history


def _export(plan: Plan, out: Path, progress: Progress) -> list[dict[str, Any]]:
    reports = []
    for form in plan.settings.export:
        progress.say(f"exporting to {form} and comparing ...")
        samples = example_inputs(plan.student, plan.data.splits.test.input, 16)
        report = export(plan.student.module, samples, out / f"student.{form}", to=form)
        reports.append(report.to_dict())
    return reports


def _curves(plan: Plan, history: History, baseline: History | None) -> dict[str, dict[str, list[float]]]:
    """The loss and its terms, and on the validation samples what decides, of both trainings in one picture."""
    curves = {name: history.curve(name) for name in history.names() if not name.startswith("validation/")}
    told = [f"validation/{name}" for name in (plan.primary[0], "nll")]
    for model, run in ((STUDENT, history), (BASELINE, baseline)):
        if run is not None:
            curves |= {f"{model}/{name.partition('/')[2]}": run.curve(name) for name in told if name in run.names()}
    return curves
