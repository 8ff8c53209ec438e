"""What can be done with a finished run: open its student, measure it again, export it, write its report again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.errors import UserError, first_line
from limbeck.experiment.ledger import environment
from limbeck.export import export
from limbeck.job.assess import assess, costs, fidelity
from limbeck.job.output import read_settings, saved_reference, write_text
from limbeck.job.plan import Plan, example_inputs, make_plan
from limbeck.job.settings import Settings
from limbeck.models.network import Network
from limbeck.models.plain import WEIGHTS, load_weights
from limbeck.models.references import load_network
from limbeck.report.experiment_report import write_experiment_report
from limbeck.report.job_report import write_job_report
from limbeck.systems import registry


def reopen(out: Path, allow_py: bool = False) -> tuple[Plan, Network]:
    """The plan of a finished run, and its trained student, opened from the folder that the run left."""
    read_result(out)
    settings = read_settings(out, allow_py)
    for key in ("teacher", "student", "data"):
        if str(getattr(settings, key)).startswith("<"):
            raise UserError(key, getattr(settings, key), "a reference", "this run was given objects from Python")
    plan = make_plan(settings)
    return plan, trained_student(plan, out / "student")


def trained_student(plan: Plan, folder: Path) -> Network:
    """The student that a run saved in ``folder``."""
    reference = saved_reference(plan, folder)
    if reference is None:
        load_weights(plan.student.module, folder / WEIGHTS, "student")
        return plan.student
    return load_network(
        reference, task=plan.task, key="student", labels=plan.student.labels, teacher=plan.teacher,
        max_length=plan.settings.max_length,
    )  # fmt: skip


def measure_again(out: Path, allow_py: bool = False) -> dict[str, Any]:
    """Quality, agreement and cost of teacher and student, measured anew on this machine."""
    plan, student = reopen(out, allow_py)
    networks = {**plan.networks, "student": student}
    found = {name: assess(plan, network, "test") for name, network in networks.items()}
    cost = costs(plan, networks)
    models = {name: {**found[name].quality, **cost[name]} for name in networks}
    models["student"] |= fidelity(plan, found.get("teacher"), found["student"])
    return {
        "title": f"{out} measured again",
        "task": plan.task,
        "primary_metric": plan.primary[0],
        "models": models,
        "manifest": environment(),
    }


def export_student(out: Path, to: str, file: Path | None, allow_py: bool = False) -> dict[str, Any]:
    """Export the student of a finished run, compared with it on real samples."""
    plan, student = reopen(out, allow_py)
    samples = example_inputs(student, plan.data.splits.test.input, 16)
    report = export(student.module, samples, file or out / f"student.{to}", to=to)  # type: ignore[arg-type]
    return report.to_dict()


def go_on(settings: Settings) -> dict[str, Any]:
    """A finished run asked to go on: only the exports that it lacks are made."""
    out = Path(settings.out)
    result = read_result(out)
    made = {report["format"] for report in result["exports"]}
    missing = [form for form in dict.fromkeys(settings.export) if form not in made]
    if missing:
        result["exports"] += [export_student(out, form, None, settings.allow_py) for form in missing]
        write_job_report(result, out / "report.html")
        write_text(out / "result.json", json.dumps(result, indent=1))
    return result


def read_result(out: Path) -> dict[str, Any]:
    """The result of a finished run."""
    path = out / "result.json"
    if not path.is_file():
        hint = f"{path.name} is missing: the run is not finished" if (out / "config.yaml").is_file() else ""
        raise UserError("run", str(out), "the --out folder of a finished limbeck distill", hint)
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("run", str(path), "a result as limbeck distill writes it", first_line(error)) from None
    return result


def write_report(out: Path) -> Path:
    """Write the report of a finished job or experiment again from its stored results."""
    if (out / "result.json").is_file():
        return write_job_report(read_result(out), out / "report.html")
    if (out / "entry.json").is_file():
        entry = json.loads((out / "entry.json").read_text())
        module, _, name = json.loads((out / "run.json").read_text())["experiment"].partition(":")
        slugs = [card.slug for card in registry.systems()]
        slug = next((part for part in module.replace("_", "-").split(".") if part in slugs), None)
        return write_experiment_report(entry, registry.card(slug) if slug else None, out / "report.html", name)
    hint = "it holds no result.json or entry.json"
    raise UserError("run", str(out), "a folder of limbeck distill or limbeck run", hint)
