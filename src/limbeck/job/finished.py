"""What can be done with a finished run: open its student, measure it again, export it, write its report again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import UserError
from limbeck.experiment.ledger import environment
from limbeck.export import export
from limbeck.job.assess import assess, costs, fidelity
from limbeck.job.plan import Plan, example_inputs, make_plan
from limbeck.job.settings import Settings
from limbeck.models.network import Network
from limbeck.models.plain import WEIGHTS, load_weights
from limbeck.models.references import load_network
from limbeck.report.experiment_report import write_experiment_report
from limbeck.report.job_report import write_job_report
from limbeck.systems import registry


def reopen(out: Path) -> tuple[Plan, Network]:
    """The plan of a finished run, and its trained student, opened from the folder that the run left."""
    if not (out / "config.yaml").is_file():
        raise UserError("run", str(out), "the --out folder of limbeck distill", "config.yaml is missing")
    given = yaml.safe_load((out / "config.yaml").read_text())
    known = {field.name for field in fields(Settings)}
    settings = Settings(**{key: value for key, value in given.items() if key in known})
    for key in ("teacher", "student", "data"):
        if str(getattr(settings, key)).startswith("<"):
            raise UserError(key, getattr(settings, key), "a reference", "this run was given objects from Python")
    plan = make_plan(settings)
    return plan, trained_student(plan, out / "student")


def trained_student(plan: Plan, folder: Path) -> Network:
    """The student that a run saved in ``folder``."""
    scheme = str(plan.student.reference).partition(":")[0]
    if (folder / WEIGHTS).is_file() and scheme in ("py", "testbed"):
        load_weights(plan.student.module, folder / WEIGHTS, "student")
        return plan.student
    if scheme in ("slice", "width"):
        scheme = str(plan.teacher.reference).partition(":")[0].replace("testbed", "hf")
    return load_network(
        f"{scheme}:{folder}", task=plan.task, key="student", labels=plan.student.labels, teacher=plan.teacher,
        max_length=plan.settings.max_length,
    )  # fmt: skip


def measure_again(out: Path) -> dict[str, Any]:
    """Quality, agreement and cost of teacher and student, measured anew on this machine."""
    plan, student = reopen(out)
    teacher_says, student_says = assess(plan, plan.teacher, "test"), assess(plan, student, "test")
    cost = costs(plan, {"teacher": plan.teacher, "student": student})
    models = {
        "teacher": {**teacher_says.quality, **cost["teacher"]},
        "student": {**student_says.quality, **fidelity(plan, teacher_says, student_says), **cost["student"]},
    }
    return {
        "title": f"{out} measured again",
        "task": plan.task,
        "primary_metric": plan.primary[0],
        "models": models,
        "manifest": environment(),
    }


def export_student(out: Path, to: str, file: Path | None) -> dict[str, Any]:
    """Export the student of a finished run, compared with it on real samples."""
    plan, student = reopen(out)
    samples = example_inputs(student, plan.data.splits.test.input, 16)
    report = export(student.module, samples, file or out / f"student.{to}", to=to)  # type: ignore[arg-type]
    return report.to_dict()


def write_report(out: Path) -> Path:
    """Write the report of a finished job or experiment again from its stored results."""
    if (out / "result.json").is_file():
        return write_job_report(json.loads((out / "result.json").read_text()), out / "report.html")
    if (out / "entry.json").is_file():
        entry = json.loads((out / "entry.json").read_text())
        module = json.loads((out / "run.json").read_text())["experiment"].partition(":")[0].split(".")
        slugs = [card.slug for card in registry.systems()]
        slug = next((part.replace("_", "-") for part in module if part.replace("_", "-") in slugs), None)
        return write_experiment_report(entry, registry.card(slug) if slug else None, out / "report.html")
    hint = "it holds no result.json or entry.json"
    raise UserError("run", str(out), "a folder of limbeck distill or limbeck run", hint)
