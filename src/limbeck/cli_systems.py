"""``limbeck systems``, ``show``, ``run`` and ``new``: the published systems and their experiments."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from limbeck.cli_output import note, print_json, terminal
from limbeck.errors import LimbeckError, UserError


def systems(family: str | None = None, task: str | None = None, json: bool = False) -> None:
    """List the published systems with their verdicts.

    Args:
        family: only of this family, such as classification or language.
        task: only systems whose task contains this text.
        json: print JSON.
    """
    from limbeck.systems import registry

    rows: list[dict[str, Any]] = [
        {
            "slug": card.slug, "title": card.title, "year": card.year, "family": card.family, "task": card.task,
            "faithful": card.faithful, "entries": registry.verdicts(card.slug),
        }
        for card in registry.systems(family=family or "", task=task or "")
    ]  # fmt: skip
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("system", "year", "family", "title", "claims (reproduced / not / inconclusive)", box=None)
    for row in rows:
        verdicts = "; ".join(f"{name} {_verdicts(counts)}" for name, counts in row["entries"].items())
        table.add_row(row["slug"], str(row["year"]), row["family"], row["title"], verdicts or "not recorded")
    terminal().print(table)


def show(slug: str, json: bool = False) -> None:
    """Show one system: idea, formula, numbers, limits and how to use it.

    Args:
        slug: name of the system, as limbeck systems lists it.
        json: print JSON.
    """
    import dataclasses

    from limbeck.experiment import ledger
    from limbeck.systems import registry

    card = registry.card(slug)
    recorded = ledger.read(card.family, card.slug)
    if json:
        print_json(
            {
                **{k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(card).items()},
                "ledger": recorded,
            }
        )
        return
    from rich.markdown import Markdown

    console = terminal()
    console.print(f"[bold]{card.title}[/bold] ({card.year})\n{card.idea}\n")
    for line in _recorded_lines(recorded, card.findings):
        console.print(line, highlight=False)
    if card.unrecorded:
        console.print(f"not recorded yet: {', '.join(card.unrecorded)}\n")
    page = card.folder / "README.md"
    console.print(Markdown(page.read_text(encoding="utf-8")))


def run(
    slug: str,
    entry: str | None = None,
    smoke: bool = False,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
    jobs: int = 2,
    launcher: Literal["local", "ray"] = "local",
    record: bool = False,
    check: bool = False,
    fresh: bool = False,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Run a system's experiment: arms times seeds, then the verdict of every claim.

    Args:
        slug: name of the system, or package.module:NAME of an experiment of your own.
        entry: which of its experiments; the main one by default.
        smoke: the small size, in seconds.
        seeds: which seeds; those of the experiment by default.
        arms: which arms; all by default.
        jobs: arms that run side by side, one thread each.
        launcher: processes of this machine, or a ray cluster.
        record: write the result into the ledger; all arms, and all seeds of the experiment or more.
        check: compare every number with the ledger's; fails where one differs by more than a millionth.
        fresh: forget the outcomes of an earlier run in OUT.
        out: folder of the outcomes; runs/SLUG-ENTRY-SIZE by default. A run that was cut goes on from there.
        json: print JSON.
    """
    import os
    import shlex

    # Before torch is imported: small networks are fastest on one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from limbeck.experiment import ledger, load_experiment
    from limbeck.experiment.runner import run_experiment
    from limbeck.report.experiment_report import write_experiment_report
    from limbeck.systems import registry

    # A system of one's own, outside the package, is run as my_method.experiment:NAME.
    card = None if ":" in slug else registry.card(slug)
    reference = slug if card is None else registry.experiment_reference(slug, entry or "")
    if (record or check) and card is None:
        raise UserError("record" if record else "check", slug, "a system of the package, by its slug")
    name, size = reference.partition(":")[2], "smoke" if smoke else "full"
    if record and (smoke or arms or (seeds and not set(seeds) >= set(load_experiment(reference).seeds["full"]))):
        raise UserError("record", "part of an experiment", "the full size with all arms and seeds, or more seeds")
    recorded = ledger.read(card.family, card.slug)["entries"] if check and card is not None else {}
    if check and (smoke or name not in recorded):
        raise UserError("check", "the smoke size" if smoke else name, recorded or "an entry that is recorded")
    if check and seeds is None:
        seeds = recorded[name]["seeds"]
    folder = Path(out or f"runs/{slug.partition('.')[0]}-{name}-{size}")
    command = shlex.join(["limbeck", *sys.argv[1:]])
    result = run_experiment(
        reference, size=size, seeds=seeds, arms=arms, jobs=jobs, launcher=launcher, out=folder, fresh=fresh,
        progress=not json, command=command,
    )  # fmt: skip
    report = write_experiment_report(result, card, folder / "report.html", name)
    if record and card is not None:
        path = ledger.write(card.family, card.slug, name, result)
        note(f"recorded in {path}")
    if json:
        print_json(result)
    else:
        for line in _recorded_lines({"entries": {name: result}}, card.findings if card else {}):
            terminal().print(line, highlight=False)
    note(f"report  {report}")
    if check:
        pairs = ledger.compare(result, recorded[name])
        differing = [pair for pair in pairs if pair.relative > 1e-6]
        for pair in differing[:10]:
            note(f"differs: {pair}")
        if differing:
            raise LimbeckError(f"{len(differing)} of {len(pairs)} numbers differ from the ledger's")
        note(f"all {len(pairs)} numbers are those of the ledger")


def new(slug: str, family: str, root: str = ".") -> None:
    """Begin a system of your own: a small working method, its experiment, page and test.

    Args:
        slug: its name, in small letters with hyphens.
        family: classification, language, ...
        root: a checkout of Limbeck, or any folder for a package of its own.
    """
    from limbeck.systems import registry

    for path in registry.new_system(slug, family, root):
        note(str(path))


def _recorded_lines(recorded: dict[str, Any], findings: Mapping[str, Any]) -> list[str]:
    from limbeck.report.tables import format_difference, format_interval, format_spread
    from limbeck.systems.registry import findings_of

    lines = []
    for name, entry in recorded.get("entries", {}).items():
        metric, found_out = entry["metric"], findings_of(findings, name)
        lines.append(f"[bold]{name}[/bold]  {entry['testbed']}, seeds {entry['seeds']}, {metric} on test samples")
        for arm, values in entry["arms"].items():
            summary = values["summary"].get(metric, {})
            spread = format_spread(metric, summary.get("mean"), summary.get("std"))
            lines.append(f"  {arm:>24}  {spread}  {values['description']}")
        for claim in entry["claims"]:
            found = format_difference(claim.get("metric") or "", claim.get("difference"))
            interval = format_interval(claim.get("metric") or "", claim.get("interval"))
            if claim["kind"] == "exact" and claim["deviation"] is not None:
                found, interval = f"deviation {claim['deviation']:.2g}", f"at most {claim['tolerance']:.2g} is allowed"
            lines.append(f"  {claim['verdict']}: {claim['text']} ({found}; {interval})")
            if finding := found_out.get(claim["text"]):
                lines.append(f"    [dim]{' '.join(finding.split())}[/dim]")
        lines.append("")
    return lines


def _verdicts(counts: dict[str, int]) -> str:
    return " / ".join(str(counts.get(name, 0)) for name in ("reproduced", "not reproduced", "inconclusive"))
