"""The ``limbeck`` command. Every command imports what it needs when it runs, so that help and errors come at once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.cli_cache import cache
from limbeck.cli_output import note, print_json, terminal
from limbeck.cli_systems import new, run, show, systems
from limbeck.errors import LimbeckError, UserError


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


if __name__ == "__main__":
    sys.exit(main())
