"""The page of one experiment: idea, gate, claims in words, arms, curves, cost, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from limbeck.experiment.base import VERDICTS
from limbeck.experiment.statistics import mean_interval, summary
from limbeck.report import experiment_plots, plots
from limbeck.report.measures import Measure, grouped, measure
from limbeck.report.pages import write_page
from limbeck.report.svg import Picture
from limbeck.report.tables import (
    format_difference,
    format_duration,
    format_interval,
    format_range,
    format_spread,
    format_value,
)
from limbeck.systems.registry import findings_of

ROLE_IN_WORDS = {
    "none": "no distillation",
    "rival": "rival",
    "method": "the method",
    "control": "control",
    "ablation": "ablation",
}
_CARD = {
    "title": "",
    "idea": "",
    "formula": "",
    "paper": "",
    "official_code": "",
    "limits": (),
    "released_versus_paper": (),
}


def write_experiment_report(entry: Mapping[str, Any], card: Any, path: str | Path, name: str = "") -> Path:
    """Write the page of one ledger entry.

    Args:
        entry: as :func:`limbeck.experiment.run_experiment` returns it and the ledger stores it.
        card: the system's card (a dataclass or mapping with the fields of card.toml), or None.
        path: the HTML file.
        name: of the experiment, by which the card's findings are chosen.
    """
    context = experiment_context(entry, card, name)
    return write_page("experiment.html.j2", {**context, "view": context}, path)


def experiment_context(entry: Mapping[str, Any], card: Any, name: str = "", prefix: str = "") -> dict[str, Any]:
    """What the templates show of one experiment.

    ``prefix`` goes before every id, so that a page can show several.
    """
    facts: dict[str, Any] = _CARD | (
        asdict(card) if is_dataclass(card) and not isinstance(card, type) else dict(card or {})
    )
    findings = findings_of(facts.get("findings") or {}, name)
    metrics = [
        one
        for _, measures in grouped(name for arm in entry["arms"].values() for name in arm["summary"])
        for one in measures
    ]
    metrics.sort(key=lambda one: one.name != entry["metric"])
    claims = [
        claim
        | {
            "id": f"{prefix}claim{index}",
            "sentence": claim_sentence(claim),
            "finding": findings.get(claim["text"], ""),
            "picture": experiment_plots.claim_strip(f"{prefix}claim{index}", claim)
            if claim.get("differences")
            else None,
        }
        for index, claim in enumerate(entry["claims"])
    ]
    cost_names = list(
        dict.fromkeys(
            name for arm in entry["arms"].values() for run in arm["outcomes"].values() for name in run["cost"]
        )
    )
    return {
        "prefix": prefix,
        "entry": entry,
        "card": facts,
        "title": facts["title"] or entry.get("title") or "Experiment",
        "eyebrow": " · ".join(
            str(part)
            for part in (facts.get("family"), facts.get("venue") or facts.get("year"), entry.get("title"))
            if part
        )
        or "Experiment",
        "tally": [(word, count) for word in VERDICTS if (count := sum(claim["verdict"] == word for claim in claims))],
        "setting": _setting(entry),
        "claims": claims,
        "main_picture": experiment_plots.arms(f"{prefix}arms", entry, entry["metric"]),
        "other_pictures": [
            (one, experiment_plots.arms(f"{prefix}arms-{key_of(one.name)}", entry, one.name))
            for one in metrics
            if one.name != entry["metric"]
        ],
        "columns": metrics,
        "rows": _rows(entry, metrics),
        "curves": _curves(entry, prefix),
        "reliability": _reliability(entry, prefix),
        "pictures": _pictures(entry),
        "cost_sentence": _cost_sentence(entry),
        "cost_columns": [measure(name) for name in cost_names],
        "costs": [(name, _costs(arm, cost_names)) for name, arm in entry["arms"].items()],
        "notes": [f"{key}: {value}" for key, value in entry.get("notes", {}).items()],
        "provenance": _provenance(entry),
    }


def claim_sentence(claim: Mapping[str, Any]) -> str:
    """The verdict on a claim in words, with the difference and its interval."""
    opening = {"reproduced": "Reproduced", "not reproduced": "Not reproduced"}.get(claim["verdict"], "Inconclusive")
    if claim["kind"] == "exact":
        if claim["deviation"] is None:
            return f"{opening}: {claim['reason']}."
        measured = f"the measured deviation is {claim['deviation']:.3g}"
        return f"{opening}: {measured}, at most {claim['tolerance']:.3g} is allowed."
    metric = claim["metric"]
    if claim["difference"] is None:
        return f"{opening}: {claim['reason']}."
    ahead = "ahead of" if claim["difference"] >= 0 else "behind"
    sentence = (
        f"{opening}: on {measure(metric).label}, {claim['arm']} is {ahead} {claim['over']} by "
        f"{format_difference(metric, abs(claim['difference'])).lstrip('+')}"
    )
    count = len(claim["differences"])
    sentence += f" on average over {count} paired seed{'s' if count != 1 else ''}"
    if claim["interval"] is not None:
        sentence += f" (95% interval {format_interval(metric, claim['interval'])})"
    if claim["better"] == "lower":
        sentence += ", where lower is better"
    margin = format_difference(metric, abs(claim["margin"])).lstrip("+")
    asked = "asks for any gain" if claim["margin"] == 0 else f"asks for more than {margin}"
    if claim["margin"] < 0:
        asked = f"asks that it be not worse by more than {margin}"
    return f"{sentence}. The claim {asked}; {claim['reason']}."


def _setting(entry: Mapping[str, Any]) -> str:
    seeds = entry["seeds"]
    parts = [f"{len(entry['arms'])} arms with {len(seeds)} seeds each ({', '.join(map(str, seeds))})"]
    parts += [f"on {entry['testbed']}"] if entry["testbed"] else []
    sentence = " ".join(parts) + f", size {entry['size']}."
    metric = entry["metric"]
    for name, metrics in entry.get("reference", {}).items():
        if isinstance(metrics, Mapping) and isinstance(metrics.get(metric), (int, float)):
            sentence += f" The {name} reaches {measure(metric).label} {format_value(metric, metrics[metric])}."
    return sentence


def _rows(entry: Mapping[str, Any], metrics: list[Measure]) -> list[dict[str, Any]]:
    means = {
        one.name: [
            arm["summary"][one.name]["mean"]
            for arm in entry["arms"].values()
            if arm["summary"].get(one.name, {}).get("mean") is not None
        ]
        for one in metrics
    }
    rows = []
    for name, arm in entry["arms"].items():
        cells = []
        for one in metrics:
            found = arm["summary"].get(one.name, {"mean": None, "std": None, "n": 0})
            chosen = (max if one.better == "higher" else min)(means[one.name], default=None) if one.better else None
            best = chosen is not None and found["mean"] == chosen and len(set(means[one.name])) > 1
            diverged = found.get("diverged", 0)
            values = [run["metrics"].get(one.name) for run in arm["outcomes"].values()]
            interval = mean_interval([value for value in values if value is not None])
            cells.append(
                {
                    "text": format_spread(one.name, found["mean"], found["std"]),
                    "interval": "" if interval is None else format_range(one.name, interval),
                    "best": best and not diverged,
                    "sort": "" if found["mean"] is None else found["mean"],
                    "diverged": diverged,
                }
            )
        rows.append(
            {
                "name": name,
                "role": arm["role"],
                "role_in_words": ROLE_IN_WORDS[arm["role"]],
                "description": arm["description"],
                "cells": cells,
            }
        )
    return rows


def _curves(entry: Mapping[str, Any], prefix: str) -> list[Picture]:
    names = dict.fromkeys(
        name for arm in entry["arms"].values() for run in arm["outcomes"].values() for name in run.get("curves", {})
    )
    methods = [arm for arm, record in entry["arms"].items() if record["role"] == "method"]
    pictures = []
    for name in names:
        series = {
            arm: [run["curves"][name] for run in record["outcomes"].values() if run.get("curves", {}).get(name)]
            for arm, record in entry["arms"].items()
        }
        # accuracy_by_generation is a curve of the accuracy over generations, all others are over epochs.
        metric, _, along = name.partition("_by_")
        pictures.append(
            plots.curves(
                f"{prefix}curve-{key_of(name)}",
                metric,
                {arm: runs for arm, runs in series.items() if runs},
                x_label=along.replace("_", " ") or "epoch",
                stressed=methods,
            )
        )
    return pictures


def _reliability(entry: Mapping[str, Any], prefix: str) -> Picture | None:
    diagrams = {}
    for name, arm in entry["arms"].items():
        found = [
            run["notes"]["reliability"] for run in arm["outcomes"].values() if run.get("notes", {}).get("reliability")
        ]
        if found:
            diagrams[name] = found[0]
    return plots.reliability(f"{prefix}reliability", diagrams) if diagrams else None


def _pictures(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every picture that outcomes carry, by caption, so that the arms stand side by side."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for name, arm in entry["arms"].items():
        for seed, run in arm["outcomes"].items():
            for caption, uri in run.get("pictures", {}).items():
                shown.setdefault(caption, []).append({"arm": name, "role": arm["role"], "seed": seed, "uri": uri})
    return [{"caption": caption, "shown": each} for caption, each in shown.items()]


def _costs(arm: Mapping[str, Any], names: list[str]) -> list[tuple[str, Any]]:
    found = [(name, summary([run["cost"].get(name) for run in arm["outcomes"].values()])["mean"]) for name in names]
    return [(format_value(name, mean), "" if mean is None else mean) for name, mean in found]


def _cost_sentence(entry: Mapping[str, Any]) -> str:
    runs = sum(len(arm["outcomes"]) for arm in entry["arms"].values())
    spent = sum(run["cost"].get("seconds") or 0 for arm in entry["arms"].values() for run in arm["outcomes"].values())
    mean, total = format_duration(spent / max(runs, 1)), format_duration(entry["seconds"])
    return f"{runs} runs of {mean} on average, {total} by the clock."


def _provenance(entry: Mapping[str, Any]) -> str:
    machine = entry["machine"]
    parts = [f"Started {entry['started'].replace('T', ' ').replace('+00:00', ' UTC')}"]
    parts.append(f"on {machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}")
    if machine.get("accelerator"):
        parts.append(f"with {machine['accelerator']}")
    source = f"source at commit {entry['commit'][:12]}" if entry["commit"] else "source outside a repository"
    return ", ".join(parts) + f"; {source}{', with local changes' if entry.get('dirty') else ''}."


def key_of(name: str) -> str:
    """The name as it can stand in an id."""
    return "".join(character if character.isalnum() else "-" for character in name)
