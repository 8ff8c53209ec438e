"""What a distillation leaves behind: result, report, model card, settings; each written aside and renamed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from limbeck.experiment.ledger import environment
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.report.job_report import write_job_report
from limbeck.report.measures import measure
from limbeck.report.tables import against_teacher, format_value, rich_table

_MADE = ("result.json", "report.html", "config.yaml", "student", "training", "baseline")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def fresh_folder(path: Path) -> Path:
    """An empty folder in place of whatever was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def clear(out: Path) -> None:
    """Remove what an earlier run made, but for the teacher's cache, which checks by itself whether it still holds."""
    for name in (*_MADE, *(f"student.{form}" for form in ("onnx", "pt2"))):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_settings(out: Path, settings: Settings) -> None:
    """The resolved configuration, which ``limbeck distill --config`` reads again."""
    plain = {key: value for key, value in settings.plain().items() if key not in ("resume", "dry_run", "overwrite")}
    write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def show_plan(plan: Plan, progress: Progress) -> None:
    """The plan with the reason of every choice."""
    progress.say(f"teacher  {plan.teacher.describe()}")
    progress.say(f"student  {plan.student.describe()}")
    progress.say(f"data     {plan.data.describe()}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for choice in plan.choices:
        table.add_row(choice.key, choice.value, f"[dim]{choice.reason}[/dim]")
    progress.console.print(table)


def result_of(
    plan: Plan,
    models: dict[str, dict[str, float]],
    curves: dict[str, Any],
    exports: list[dict[str, Any]],
    fingerprint: str,
    seconds: float,
) -> dict[str, Any]:
    """Everything about a run as plain values."""
    return {
        "title": f"{plan.teacher.reference} to {plan.student.reference}",
        "task": plan.task,
        "primary_metric": plan.primary[0],
        "models": models,
        "curves": curves,
        "plan": [choice.plain() for choice in plan.choices],
        "exports": exports,
        "manifest": {
            "teacher": plan.teacher.describe(),
            "teacher fingerprint": fingerprint,
            "student": plan.student.describe(),
            "data": plan.data.describe(),
            "seconds": round(seconds, 1),
            **{f"{name} hash": value for name, value in plan.data.fingerprint.items()},
            **environment(),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "notes": list(plan.data.notes),
    }


def write_result(out: Path, plan: Plan, result: dict[str, Any]) -> None:
    """The report, the model card, and last the result, whose presence says that the run is finished."""
    write_job_report(result, out / "report.html")
    write_text(out / "student" / "README.md", model_card(plan, result))
    write_text(out / "result.json", json.dumps(result, indent=1))


def model_card(plan: Plan, result: dict[str, Any]) -> str:
    """A model card in Markdown."""
    models = result["models"]
    names = list(models)
    lines = [
        f"# {plan.student.reference}, distilled from {plan.teacher.reference}", "",
        f"Task: {plan.task}. Data: {plan.data.describe()}.", "",
        "| measure | " + " | ".join(names) + " | against the teacher |", "|---" * (len(names) + 2) + "|",
    ]  # fmt: skip
    for name in models["student"]:
        cells = [format_value(name, models[model].get(name)) for model in names]
        ratio = against_teacher(name, models["student"].get(name), models["teacher"].get(name))
        lines.append(f"| {measure(name).label} | " + " | ".join(cells) + f" | {ratio} |")
    lines += [
        "",
        "## Training",
        "",
        *[f"- {c.key}: {c.value} ({c.reason})" for c in plan.choices],
        "",
        f"Made by Limbeck with `{result['command']}`. Measures are on held-out test samples.",
    ]
    return "\n".join(lines) + "\n"


def show_result(result: dict[str, Any], out: Path, progress: Progress) -> None:
    """The table at the end, and where everything lies."""
    progress.console.print(rich_table(result))
    for export in result["exports"]:
        progress.say(
            f"{export['format']}  {export['path']}  largest difference {export['max_abs_difference']:.1e} "
            f"over {len(export['parity'])} batch sizes and lengths"
        )
    progress.say(
        f"student  {out / 'student'}\nreport   {out / 'report.html'}\nin {result['manifest']['seconds']:.0f} s"
    )
