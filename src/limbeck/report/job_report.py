"""The page of one distillation: what was kept, what was gained, how it was trained, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.report import plots
from limbeck.report.measures import grouped, measure
from limbeck.report.pages import plain_number, write_page
from limbeck.report.svg import Picture
from limbeck.report.tables import (
    against_teacher,
    best_models,
    format_value,
    is_number,
    result_metrics,
)

_RESULT: dict[str, Any] = {
    "title": "Distillation",
    "task": "",
    "models": {},
    "primary_metric": "",
    "curves": {},
    "plan": (),
    "exports": (),
    "manifest": {},
    "command": "",
    "notes": (),
}


def write_job_report(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page of a ``limbeck distill`` result.

    Args:
        result: ``title``, ``task``; ``models``: name -> flat measures, of which ``teacher`` and ``student``
            are compared; ``primary_metric``; ``curves``: name -> ``{"x", "y"}``, where names
            ``MODEL/MEASURE`` share a picture per measure; ``plan``: ``{"key", "value", "reason"}``;
            ``exports``: ``{"format", "parity", ...}``; ``manifest``; ``command``; ``notes``; and, where there is
            one, ``reliability``: model -> ``confidence``, ``accuracy``, ``share``.
        path: the HTML file.
    """
    return write_page("job.html.j2", job_context(_RESULT | dict(result)), path)


def job_context(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    models: Mapping[str, Mapping[str, Any]] = result["models"]
    teacher = models.get("teacher", {})
    groups = []
    for group, measures in grouped(result_metrics(result), result["primary_metric"]):
        rows = []
        for one in measures:
            best = best_models(one.name, models)
            cells = []
            for name, values in models.items():
                value = values.get(one.name)
                shown = float(value) if isinstance(value, (int, float)) else None
                cells.append(
                    {
                        "text": format_value(one.name, shown),
                        "best": name in best,
                        "ratio": "" if name == "teacher" else against_teacher(one.name, shown, teacher.get(one.name)),
                    }
                )
            rows.append({"label": one.label, "arrow": one.arrow, "cells": cells})
        groups.append((group, rows))
    exports = [_export(line) for line in result["exports"]]
    columns = list(dict.fromkeys(["format", *(key for line in exports for key in line)]))
    reliability = result.get("reliability")
    return {
        "result": result,
        "headline": headline(result),
        "models": list(models),
        "has_teacher": bool(teacher),
        "groups": groups,
        "scatter": plots.quality_latency("scatter", models, result["primary_metric"])
        if result["primary_metric"]
        else None,
        "curves": _curves(result["curves"]),
        "reliability": plots.reliability("reliability", reliability) if reliability else None,
        "exports": [[_cell(column, line.get(column, "")) for column in columns] for line in exports],
        "export_columns": columns,
        "manifest": _manifest(result["manifest"]),
    }


def headline(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The three or four figures that a reader came for."""
    models = result["models"]
    teacher, student = models.get("teacher", {}), models.get("student", {})
    found = []
    primary = result["primary_metric"]
    if primary and is_number(student.get(primary)):
        ratio = against_teacher(primary, student[primary], teacher.get(primary))
        label = measure(primary).label
        kept = ratio.removesuffix(" of the teacher")
        found.append((kept, f"of the teacher's {label}") if ratio else (format_value(primary, student[primary]), label))
    gains = (
        ("throughput", "{}, in throughput"),
        ("latency_p50_ms", "{} at batch 1"),
        ("parameters", "{} parameters"),
        ("bytes", "{} on disk"),
    )
    for metric, words in gains:
        big, _, direction = against_teacher(metric, student.get(metric), teacher.get(metric)).partition(" ")
        if direction and big != "the":
            found.append((big, words.format(direction)))
    return found[:4]


def _curves(curves: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    by_measure: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, line in curves.items():
        model, slash, metric = name.rpartition("/")
        by_measure.setdefault(metric, {})[model if slash else metric.replace("_", " ")] = line
    pictures = []
    for index, (metric, lines) in enumerate(by_measure.items()):
        drawn = {model: line for model, line in lines.items() if line.get("y")}
        if drawn:
            series = {model: [line["y"]] for model, line in drawn.items()}
            steps = {model: line["x"] for model, line in drawn.items() if line.get("x")}
            label = next((line["x_label"] for line in drawn.values() if line.get("x_label")), "step")
            pictures.append(plots.curves(f"curve{index}", metric, series, steps=steps, x_label=label))
    return pictures


def _manifest(manifest: Mapping[str, Any]) -> list[tuple[str, dict[str, str], bool]]:
    """Nested mappings become tables of their own, everything else shares the first."""
    flat = {_words(key): _text(value) for key, value in manifest.items() if not isinstance(value, Mapping)}
    tables = [("Made from", flat, False)] if flat else []
    for key, value in manifest.items():
        if isinstance(value, Mapping) and value:
            texts = {str(name): _text(item) for name, item in value.items()}
            tables.append(
                (
                    _words(key).capitalize(),
                    texts,
                    all(len(text) >= 32 and " " not in text for text in texts.values()),
                )
            )
    return tables


def _export(line: Mapping[str, Any]) -> dict[str, Any]:
    """One export: the checks of its parity in a few words."""
    checks = line.get("parity")
    if not isinstance(checks, (list, tuple)):
        return dict(line)
    sizes = ", ".join(str(size) for size in dict.fromkeys(check["batch"] for check in checks))
    lengths = ", ".join(str(size) for size in dict.fromkeys(check["length"] for check in checks) if size is not None)
    return {
        "format": line["format"],
        "file": Path(line["path"]).name,
        "bytes": line["bytes"],
        "parity": line["max_abs_difference"],
        "allowed": f"{line['tolerance']:.0e} of the largest value",
        "checked on": f"batches of {sizes}" + (f", lengths {lengths}" if lengths else ""),
    }


def _cell(column: str, value: Any) -> str:
    if is_number(value) and not isinstance(value, int):
        return f"{value:.2g}" if column == "parity" or "difference" in column else plain_number(value)
    if column in ("bytes", "size") and isinstance(value, int):
        return format_value("bytes", value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return plain_number(value)


def _words(key: str) -> str:
    return str(key).replace("_", " ")
