"""The ``limbeck`` command. Every command imports what it needs when it runs, so that help and errors come at once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.cli_cache import cache
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


def export(run: str, to: Literal["onnx", "pt2"] = "onnx", out: str | None = None, allow_py: bool = False) -> None:
    """Export the student of a finished run, and compare the file with it on real samples.

    Args:
        run: the --out folder of limbeck distill.
        to: onnx or pt2.
        out: the file; RUN/student.onnx by default.
        allow_py: let py: references run code.
    """
    from limbeck.job.finished import export_student

    print_json(export_student(Path(run), to, Path(out) if out else None, allow_py))


def measure(run: str, allow_py: bool = False, json: bool = False) -> None:
    """Measure the student of a finished run again: quality, agreement, size and speed on this machine.

    Args:
        run: the --out folder of limbeck distill.
        allow_py: let py: references run code.
        json: print JSON.
    """
    from limbeck.job.finished import measure_again

    result = measure_again(Path(run), allow_py)
    if json:
        print_json(result)
        return
    from limbeck.report.tables import rich_table

    terminal().print(rich_table(result))


def report(run: str) -> None:
    """Write the report of a finished run again.

    Args:
        run: the --out folder of limbeck distill, or a folder of limbeck run.
    """
    from limbeck.job.finished import write_report

    note(f"report  {write_report(Path(run))}")


def site(out: str, jobs: int = 2, json: bool = False) -> None:
    """Make the static site of all systems from cards, ledger and pages; it opens from disk and needs no network.

    Args:
        out: a new or empty folder, or a site made before, which is replaced as a whole.
        jobs: pages that are made side by side.
        json: print the list of pages as JSON.
    """
    from limbeck.report.site import write_site

    def progress(done: int, count: int) -> None:
        print(f"\r{done} of {count} systems", end="\n" if done == count else "", file=sys.stderr, flush=True)  # noqa: T201

    watched = sys.stderr.isatty() and not json
    pages = write_site(out, jobs=jobs, progress=progress if watched else None)
    if json:
        print_json([str(page) for page in pages])
    else:
        note(f"{len(pages)} pages; begin with {pages[0]}")


def data(action: str = "list", names: Sequence[str] = (), all: bool = False, json: bool = False) -> None:
    """List, fetch and verify the real data and pretrained models that testbeds use.

    Args:
        action: list, get or verify.
        names: which; for get and verify.
        all: every one of them.
        json: print JSON.
    """
    from limbeck.data import artefacts

    if action == "list":
        rows = artefacts.listing()
        if json:
            print_json(rows)
            return
        from rich.table import Table

        table = Table("name", "from", "licence", "size", "here", "what", box=None)
        for row in rows:
            here = "yes" if row["present"] else "no"
            table.add_row(
                row["name"], row["registry"], row["licence"], f"{row['bytes'] / 1e6:.0f} MB", here, row["holds"]
            )
        terminal().print(table)
        return
    known = artefacts.listing()
    wanted = [*names, *(row["name"] for row in known if all)]
    if not wanted:
        raise UserError("names", "none", [row["name"] for row in known], "or --all")
    for name in wanted:
        path = artefacts.fetch(name) if action == "get" else artefacts.verify(name)
        note(f"{name}  {path}")


def doctor(json: bool = False) -> None:
    """Check this installation: versions, optional libraries, processor, disk and caches.

    Args:
        json: print JSON.
    """
    from limbeck.job.doctor import examine

    checks = examine()
    if json:
        print_json(checks)
    else:
        for check in checks:
            mark = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}[
                check["state"]
            ]
            terminal().print(f"{mark} {check['what']}: {check['found']}", highlight=False)
    if any(check["state"] == "bad" for check in checks):
        raise SystemExit(1)


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


COMMANDS: dict[str, Callable[..., None]] = {
    "systems": systems, "show": show, "run": run, "cache": cache, "export": export, "measure": measure,
    "report": report, "site": site, "data": data, "doctor": doctor, "new": new,
}  # fmt: skip
_USAGE = {
    "show": "SLUG ", "run": "SLUG ", "new": "SLUG FAMILY ", "export": "RUN ", "measure": "RUN ", "report": "RUN ",
    "site": "OUT ",
    "cache": "(--teacher REF --data REF --out DIR | show | verify | merge | recode) [DIR ...] ",
    "data": "[list | get | verify] [NAME ...] ",
}  # fmt: skip
_ACTIONS = {"data": ("list", "get", "verify"), "cache": ("write", "show", "verify", "merge", "recode")}
_BY_HAND: set[str | int] = {"action", "names", "folders"}


def parser() -> Any:
    """The command line, made from the functions above and from the settings of a job."""
    from limbeck.arguments import Parser
    from limbeck.job.settings import REFERENCES, Settings

    top = Parser(prog="limbeck", description="Distil neural networks, with proof of what was kept and gained.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subcommands(required=False, dest="command")
    about = "Distil a teacher into a student and measure both."
    job = Parser(usage="limbeck distill --teacher REF --student REF --data REF --out DIR [options]")
    for name, text in REFERENCES.items():
        job.add_argument(f"--{name}", type=str, default="", help=text)
    job.add_argument("--config", type=str, help="YAML file with any of these settings; options overrule it")
    job.add_argument("--json", type=bool, default=False, help="print the result as JSON")
    job.add_class_arguments(Settings, None, skip=set(REFERENCES))
    commands.add_subcommand("distill", job, help=about)
    for name, function in COMMANDS.items():
        sub = Parser(usage=f"limbeck {name} {_USAGE.get(name, '')}[options]")
        if name in _ACTIONS:
            actions = _ACTIONS[name]
            sub.add_argument("action", nargs="?", choices=actions, default=actions[0], help="what to do")
            objects = {"data": ("names", "which artefacts, for get and verify"), "cache": ("folders", "of caches")}[
                name
            ]
            sub.add_argument(objects[0], nargs="*", help=objects[1])
        sub.add_function_arguments(function, None, as_positional=name != "cache", skip=_BY_HAND)
        commands.add_subcommand(name, sub, help=(function.__doc__ or "").partition("\n")[0])
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 for an error that a user can act on, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)  # noqa: T201
        return 130 if type(error).__name__ == "Interrupted" else 2
    except OSError as error:
        # A full disk, above all; whatever else goes wrong with a file is told in the same way.
        print(f"limbeck: {error.filename or words[0]}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("limbeck: interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _run(words: list[str]) -> int:
    from limbeck.arguments import normalised

    command = words[0] if words else ""
    if command and not command.startswith("-"):
        if command not in ("distill", *COMMANDS):
            raise UserError("command", command, ["distill", *COMMANDS], "see limbeck --help")
        wants_help = any(word in ("-h", "--help") for word in words)
        words = [command, *(["--help"] if wants_help else normalised(words[1:], _options(command), command))]
    top = parser()
    chosen = top.parse_args(words)
    if chosen.version:
        from importlib.metadata import version

        print(version("limbeck"))  # noqa: T201
        return 0
    if chosen.command is None:
        top.print_help()
        return 2
    return _dispatch(chosen.command, dict(chosen[chosen.command]))


def _options(command: str) -> dict[str, str]:
    """The options of a command with their annotations, which are texts in these modules."""
    if command == "distill":
        from limbeck.job.settings import Settings

        return {"config": "str", "json": "bool", **Settings.__annotations__}
    parameters = inspect.signature(COMMANDS[command]).parameters.values()
    return {
        parameter.name: str(parameter.annotation)
        for parameter in parameters
        if parameter.name not in _BY_HAND and (parameter.default is not parameter.empty or command == "cache")
    }


def _dispatch(command: str, options: dict[str, Any]) -> int:
    if command != "distill":
        COMMANDS[command](**options)
        return 0
    from limbeck.job.progress import Progress
    from limbeck.job.run import run as run_job
    from limbeck.job.settings import Settings

    options.pop("config", None)
    as_json = options.pop("json")
    result = run_job(Settings(**options), Progress(quiet=as_json))
    if as_json:
        print_json(result)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
