"""Run an experiment: every arm with every seed, side by side, interruptible, into one entry for the ledger.

The runner is handed a reference such as ``"package.module:NAME"`` and knows no system.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.errors import LimbeckError, UserError
from limbeck.experiment import statistics
from limbeck.experiment.base import Claim, Exact, Experiment, load_experiment
from limbeck.experiment.launchers import Answer, Launcher, Task, make_launcher, write_aside
from limbeck.experiment.ledger import environment
from limbeck.experiment.progress import RunProgress
from limbeck.experiment.sources import changed_sources, fingerprint
from limbeck.experiment.worker import failure


def run_experiment(
    experiment: str,
    *,
    size: str = "full",
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    jobs: int = 1,
    launcher: str | Launcher = "local",
    out: str | Path,
    fresh: bool = False,
    progress: bool = True,
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Run an experiment and return its entry, as the ledger stores it.

    Every outcome is written to ``out/ARM/SEED.json`` as it ends, so the same call continues an interrupted
    run. An arm that raises, or whose worker dies, is listed in the entry's ``failures`` with its traceback,
    and the others go on.

    Args:
        experiment: ``"package.module:NAME"``.
        size: ``smoke``, ``full`` or another key of the experiment's ``seeds``.
        seeds, arms: a part of them; the entry then says ``partial``.
        jobs: processes side by side, each with one thread.
        launcher: ``local``, ``ray``, ``ray:ADDRESS`` or a :class:`~limbeck.experiment.launchers.Launcher` to
            reuse.
        out: folder of this run.
        fresh: throw away what ``out`` holds of an earlier run.
        command: the shell command that repeats the run, for the record.

    Raises:
        UserError: unknown size, arm, seed or launcher; ``out`` holds outcomes of other code.
        LimbeckError: the shared preparation failed, or (in any size but ``smoke``) its gate did not pass.
    """
    subject = load_experiment(experiment, size)
    chosen_seeds = list(subject.seeds[size] if seeds is None else dict.fromkeys(seeds))
    chosen_arms = _choose(subject, arms)
    folder = Path(out)
    state = _open(folder, subject, experiment, fresh)
    tasks = [Task("run", experiment, size, arm, seed) for seed in chosen_seeds for arm in chosen_arms]
    missing = [task for task in tasks if not _outcome_path(folder, task).exists()]
    failures: list[dict[str, Any]] = []
    start = time.perf_counter()
    owned = isinstance(launcher, str)
    pool = make_launcher(launcher, jobs) if isinstance(launcher, str) else launcher
    title = subject.title or subject.name
    try:
        with RunProgress(title, len(tasks), enabled=progress, console=console) as shown:
            prepared = _prepare(pool, subject, experiment, folder, shown)
            deviations = _check_exact(pool, subject, experiment, folder, shown)
            if len(missing) < len(tasks):
                shown.skip(len(tasks) - len(missing))
                shown.say(f"{len(tasks) - len(missing)} of {len(tasks)} outcomes are already in {folder}")
            for task, answer in pool.run(missing):
                _keep(folder, task, answer, state["sources"], failures, shown, subject.metric)
    except KeyboardInterrupt:
        kept = sum(_outcome_path(folder, task).exists() for task in tasks)
        RunProgress(title, 0, enabled=progress, console=console).say(
            f"stopped; {kept} of {len(tasks)} outcomes are kept in {folder}; the same command goes on"
        )
        raise
    finally:
        state["seconds"] += time.perf_counter() - start
        write_aside(folder / "run.json", json.dumps(state, indent=1))
        if owned:
            pool.close()
    outcomes = {
        arm: {
            seed: _read(folder / arm / f"{seed}.json")
            for seed in chosen_seeds
            if (folder / arm / f"{seed}.json").exists()
        }
        for arm in chosen_arms
    }
    entry = _entry(subject, chosen_seeds, prepared, outcomes, deviations)
    partial = set(chosen_arms) != set(subject.arms) or not set(chosen_seeds) >= set(subject.seeds[size])
    entry |= environment(prepared.get("accelerator", "")) | {
        "command": command or _python_command(experiment, size, seeds, arms),
        "code": fingerprint(state["sources"]),
        "started": state["started"],
        "seconds": round(state["seconds"], 1),
        "partial": partial or bool(failures),
        "failures": failures,
        "notes": {},
    }
    write_aside(folder / "entry.json", json.dumps(entry, indent=1, allow_nan=False))
    return entry


def _choose(subject: Experiment, arms: Sequence[str] | None) -> list[str]:
    for arm in arms or ():
        if arm not in subject.arms:
            raise UserError("arms", arm, subject.arms)
    return [name for name in subject.arms if arms is None or name in arms]


def _open(folder: Path, subject: Experiment, reference: str, fresh: bool) -> dict[str, Any]:
    """The state of the run in ``folder``: a new one, or that of the same experiment and code."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    libraries = {name: version(name) for name in ("torch", "numpy")}
    mine = {"experiment": reference, "size": subject.size, "libraries": libraries}
    path = folder / "run.json"
    if fresh and path.exists():
        shutil.rmtree(folder)
    if path.exists():
        found: dict[str, Any] = _read(path)
        changed = changed_sources(reference.partition(":")[0], found["sources"])
        what = f"outcomes of other code ({', '.join(changed[:5])} changed since)" if changed else ""
        what = next(
            (f"a run whose {key} is {found.get(key)}" for key, value in mine.items() if found.get(key) != value),
            what,
        )
        if what:
            raise UserError("out", f"{folder}, which holds {what}", "a new folder", "or start afresh (fresh, --fresh)")
        return found
    if folder.exists() and any(folder.iterdir()):
        raise UserError("out", str(folder), "a new or empty folder, or that of an earlier run")
    state = mine | {"started": now, "seconds": 0.0, "sources": {}}
    write_aside(path, json.dumps(state, indent=1))
    return state


def _prepare(pool: Launcher, subject: Experiment, reference: str, folder: Path, shown: RunProgress) -> dict[str, Any]:
    path = folder / "prepare.json"
    if path.exists():
        prepared: dict[str, Any] = _read(path)
    else:
        shown.say("preparing the data, the teacher and the gate")
        [(_, answer)] = pool.run([Task("prepare", reference, subject.size)])
        if (error := answer.get("error")) is not None:
            raise LimbeckError(f"the preparation of {reference} failed: {_summary(error)}\n{error['traceback']}")
        prepared = answer["result"]
        write_aside(path, json.dumps(prepared, indent=1))
    reason = gate_failure(prepared)
    if reason and subject.size != "smoke":
        raise LimbeckError(f"{reason}: results would be void, so no arm was run")
    return prepared


def gate_failure(prepared: Mapping[str, Any]) -> str:
    """Why the gate of ``prepared`` did not pass, or nothing."""
    gate = prepared.get("gate") or {"passed": True}
    if gate["passed"]:
        return ""
    failed = [
        f"{check['name']} is {check['value']}, asked {check['bound']}"
        for check in gate.get("checks", ())
        if not check["passed"]
    ]
    return "the gate did not pass" + (f" ({'; '.join(failed)})" if failed else "")


def _check_exact(
    pool: Launcher, subject: Experiment, reference: str, folder: Path, shown: RunProgress
) -> dict[int, tuple[float | None, str]]:
    """Measured deviation of every exact claim, or None and the reason."""
    wanted = [index for index, claim in enumerate(subject.claims) if isinstance(claim, Exact)]
    path = folder / "exact.json"
    if wanted and not path.exists():
        found: dict[str, Any] = {}
        for task, answer in pool.run([Task("exact", reference, subject.size, index=index) for index in wanted]):
            claim = subject.claims[task.index]
            if "error" in answer:
                found[str(task.index)] = [None, f"the check failed: {_summary(answer['error'])}"]
            else:
                found[str(task.index)] = [answer["result"]["deviation"], ""]
            shown.say(f"exact: {claim.text}: deviation {found[str(task.index)][0]}")
        write_aside(path, json.dumps(found, indent=1))
    return {int(index): (value, reason) for index, (value, reason) in (_read(path) if wanted else {}).items()}


def _keep(
    folder: Path,
    task: Task,
    answer: Answer,
    sources: dict[str, str],
    failures: list[dict[str, Any]],
    shown: RunProgress,
    metric: str,
) -> None:
    complaint = folder / task.arm / f"{task.seed}.error.txt"
    used = {} if "error" in answer else answer["result"]["sources"]
    changed = sorted(name for name in used if sources.get(name, used[name]) != used[name])
    if changed:
        answer = {"error": failure("CodeChanged", f"{', '.join(changed)} changed while the run was going")}
    if "error" in answer:
        error = answer["error"]
        write_aside(complaint, f"{_summary(error)}\n\n{error['traceback']}\n")
        failures.append({"arm": task.arm, "seed": task.seed, "error": _summary(error), "traceback": error["traceback"]})
        shown.step(f"{task} FAILED: {_summary(error)} (see {complaint})", "red")
        return
    record = answer["result"]["outcome"]
    if used.keys() - sources.keys():
        # Before the outcome: an outcome is never there without the record of its code.
        sources |= used
        state = _read(folder / "run.json") | {"sources": sources}
        write_aside(folder / "run.json", json.dumps(state, indent=1))
    write_aside(_outcome_path(folder, task), json.dumps(record, indent=1, allow_nan=False))
    complaint.unlink(missing_ok=True)
    value = record["metrics"].get(metric)
    reached = (
        f"{metric} {value:.4g}" if value is not None else f"{metric} diverged" if metric in record["metrics"] else ""
    )
    shown.step(f"{task}: {reached}  ({record['cost']['seconds']:.1f} s)")


def _entry(
    subject: Experiment,
    seeds: list[int],
    prepared: Mapping[str, Any],
    outcomes: Mapping[str, Mapping[int, Mapping[str, Any]]],
    deviations: Mapping[int, tuple[float | None, str]],
) -> dict[str, Any]:
    arms = {}
    for arm, by_seed in outcomes.items():
        metrics = list(dict.fromkeys(name for record in by_seed.values() for name in record["metrics"]))
        arms[arm] = {
            "description": subject.arms[arm].description,
            "role": subject.arms[arm].role,
            "outcomes": {str(seed): record for seed, record in by_seed.items()},
            "summary": {
                name: statistics.summary([record["metrics"].get(name) for record in by_seed.values()])
                for name in metrics
            },
        }
    metrics_by_arm = {arm: {seed: record["metrics"] for seed, record in runs.items()} for arm, runs in outcomes.items()}
    claims = []
    for index, claim in enumerate(subject.claims):
        if isinstance(claim, Claim):
            claims.append(statistics.decide(claim, metrics_by_arm))
        else:
            deviation, reason = deviations.get(index, (None, ""))
            claims.append(statistics.decide_exact(claim, deviation, reason))
    reason = gate_failure(prepared)
    return {
        "title": subject.title,
        "size": subject.size,
        "testbed": subject.testbed,
        "metric": subject.metric,
        "seeds": seeds,
        "gate": prepared.get("gate", {"passed": True, "checks": []}),
        "reference": prepared.get("reference", {}),
        "data": prepared.get("data", {}),
        "preparation_seconds": prepared.get("seconds"),
        "arms": arms,
        "claims": statistics.void(claims, reason) if reason else claims,
        "statistics": statistics.METHOD,
    }


def _outcome_path(folder: Path, task: Task) -> Path:
    return folder / task.arm / f"{task.seed}.json"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _summary(error: Mapping[str, str]) -> str:
    first = (error["message"].strip().splitlines() or [""])[0]
    return f"{error['type']}: {first}" if first else error["type"]


def _python_command(experiment: str, size: str, seeds: Sequence[int] | None, arms: Sequence[str] | None) -> str:
    options = f", size={size!r}" + (f", seeds={list(seeds)}" if seeds is not None else "")
    options += f", arms={list(arms)}" if arms is not None else ""
    call = f"run_experiment({experiment!r}{options}, out='run')"
    return f'python -c "from limbeck.experiment import run_experiment; {call}"'
