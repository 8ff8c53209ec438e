"""What a distillation leaves behind: result, report, model card, settings; each written aside and renamed."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from limbeck.errors import UserError, first_line
from limbeck.experiment.ledger import environment
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.report.job_report import write_job_report
from limbeck.report.measures import measure
from limbeck.report.tables import against_teacher, format_value, rich_table

#: What may change when a run goes on.
_FREE = ("out", "export", "logger", "allow_py", "resume", "overwrite", "dry_run")
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


def refuse_foreign(out: Path) -> None:
    """Make sure that nothing of somebody else's is replaced."""
    made = [name for name in _MADE if (out / name).exists()]
    config = out / "config.yaml"
    ours = config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith("teacher:")
    if made and not ours:
        raise UserError("out", str(out), "a new folder", f"its {', '.join(made)} are not of limbeck distill")


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
    # What may run code is allowed anew each time, by whoever runs it.
    left_out = ("resume", "dry_run", "overwrite", "allow_py")
    plain = {key: value for key, value in settings.plain().items() if key not in left_out}
    write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def read_settings(out: Path, allow_py: bool = False) -> Settings:
    """The configuration that a run in ``out`` was begun with."""
    path = out / "config.yaml"
    if not path.is_file():
        raise UserError("run", str(out), "the --out folder of limbeck distill", f"{path.name} is missing")
    known = {field.name for field in dataclasses.fields(Settings)}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in given.items() if key in known}
        return Settings(**{**kept, "out": str(out), "allow_py": allow_py})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise UserError("run", str(path), "settings as limbeck distill writes them", first_line(error)) from None


def continued(settings: Settings) -> Settings:
    """The settings of a run that goes on: those it was begun with, for with others it would be another run."""
    if settings.teacher and not (Path(settings.out) / "config.yaml").exists():
        # Nothing was begun yet: this is the beginning.
        return settings
    begun = read_settings(Path(settings.out))
    usual = Settings()
    for key in (field.name for field in dataclasses.fields(Settings) if field.name not in _FREE):
        given, first = getattr(settings, key), getattr(begun, key)
        if str(first).startswith("<"):
            # An object from Python has to be given again.
            setattr(begun, key, given)
        elif given not in (first, getattr(usual, key)):
            raise UserError(key, given, str(first), "a resumed run keeps its settings; --overwrite begins anew")
    return dataclasses.replace(begun, **{key: getattr(settings, key) for key in _FREE})


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
    pictures: dict[str, Any],
    exports: list[dict[str, Any]],
    fingerprint: str,
    seconds: float,
    training_seconds: float,
) -> dict[str, Any]:
    """Everything about a run as plain values; seconds are of the whole, and of the student's training alone."""
    return {
        "title": f"{plan.teacher.reference} to {plan.student.reference}",
        "task": plan.task,
        "primary_metric": plan.primary[0],
        "models": models,
        **pictures,
        "plan": [choice.plain() for choice in plan.choices],
        "exports": exports,
        "manifest": {
            "teacher": plan.teacher.describe(),
            "teacher fingerprint": fingerprint,
            "student": plan.student.describe(),
            "data": plan.data.describe(),
            "seconds": round(seconds, 1),
            "training seconds": round(training_seconds, 1),
            **{f"{what} left out": f"{count} of {asked}" for what, (count, asked) in _unread(plan).items()},
            **{f"{name} hash": value for name, value in plan.data.fingerprint.items()},
            **environment(),
        },
        "notes": _notes(plan, models),
        **_alignment(plan),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _alignment(plan: Plan) -> dict[str, Any]:
    """How well the texts of a teacher with another tokenizer align, on a sample of the training texts."""
    alignment = plan.language.alignment if plan.language is not None else None
    return {} if alignment is None else {"alignment": alignment.report.summary()}


def _notes(plan: Plan, models: dict[str, dict[str, float]]) -> list[str]:
    """What a reader should not overlook: a teacher that was not measured, left texts out, or did not help."""
    away = [f"The teacher is {note}." for note in plan.teacher.notes] if plan.address else []
    away += [
        f"{count:,} of {asked:,} {what} that the teacher's server was asked about are left out: it reads them in other "
        "tokens than the tokenizer."
        for what, (count, asked) in _unread(plan).items()
        if count
    ]
    return away + _no_help(plan, models)


def _unread(plan: Plan) -> dict[str, tuple[int, int]]:
    """Texts that a teacher behind a server could not read, and how many it was asked about."""
    return plan.language.unread if plan.language is not None else {}


def _no_help(plan: Plan, models: dict[str, dict[str, float]]) -> list[str]:
    primary, higher = plan.primary
    student, alone = models["student"].get(primary), models.get("student without distillation", {}).get(primary)
    if student is None or alone is None or student == alone or (student > alone) == higher:
        return []
    return [
        f"The teacher did not help here: without it the student's {measure(primary).label} is "
        f"{format_value(primary, alone)}, with it {format_value(primary, student)}. "
        "A better teacher, or more weight on the targets in --objective, may."
    ]


def write_result(out: Path, plan: Plan, result: dict[str, Any]) -> None:
    """The report, the model card, and last the result, whose presence says that the run is finished."""
    write_job_report(result, out / "report.html")
    write_text(out / "student" / "README.md", model_card(plan, result))
    write_text(out / "result.json", json.dumps(result, indent=1))


def saved_reference(plan: Plan, folder: Path | str) -> str | None:
    """What :func:`~limbeck.models.load_network` opens the student by that was saved in ``folder``.

    None for a student that code or a testbed made: its folder holds weights alone.
    """
    scheme = str(plan.student.reference).partition(":")[0]
    if scheme in ("slice", "width"):
        scheme = str(plan.teacher.reference).partition(":")[0].replace("testbed", "hf")
    return f"{scheme}:{folder}" if scheme in ("hf", "timm", "small") else None


def _opening(plan: Plan) -> list[str]:
    """How to run the student, for its card."""
    reference = saved_reference(plan, "FOLDER")
    if reference is None:
        return []
    raw = {"text": '["a text"]', "image": '["photo.png"]'}.get(plan.student.modality, "samples")
    return [
        "```python",
        "from limbeck.models.references import load_network",
        "",
        f'network = load_network("{reference}", task="{plan.task}")  # FOLDER: where this file lies',
        f'signals = network.forward(network.module.eval(), {{"input": network.prepare({raw})}})',
        "```",
        "",
    ]


def model_card(plan: Plan, result: dict[str, Any]) -> str:
    """A model card in Markdown."""
    models = result["models"]
    names = list(models)
    versus = ["against the teacher"] if "teacher" in models else []
    lines = [
        f"# {plan.student.reference}, distilled from {plan.teacher.reference}", "",
        f"Task: {plan.task}. Data: {plan.data.describe()}.", "",
        *_opening(plan),
        "| measure | " + " | ".join([*names, *versus]) + " |", "|---" * (len(names) + 1 + len(versus)) + "|",
    ]  # fmt: skip
    for name in models["student"]:
        cells = [format_value(name, models[model].get(name)) for model in names]
        if versus:
            cells.append(against_teacher(name, models["student"].get(name), models["teacher"].get(name)))
        lines.append(f"| {measure(name).label} | " + " | ".join(cells) + " |")
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
    for note in result.get("notes", ()):
        progress.say(note)
    progress.say(
        f"student  {out / 'student'}\nreport   {out / 'report.html'}\nin {result['manifest']['seconds']:.0f} s"
    )
