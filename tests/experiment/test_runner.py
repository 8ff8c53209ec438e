"""Running arms and seeds in processes of their own: failures, interruption, continuation."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.errors import LimbeckError, UserError
from limbeck.experiment.launchers import LocalLauncher
from limbeck.experiment.runner import run_experiment

SLOW = "toy_experiments:slow"


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(folder))
    return folder


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalLauncher]:
    """Two workers for the tests that do not look at the processes: importing torch takes its time."""
    with LocalLauncher(jobs=2) as launcher:
        yield launcher


def ran(marks: Path) -> list[str]:
    return sorted("-".join(path.name.split("-")[:2]) for path in marks.iterdir())


def test_a_whole_run_gives_a_complete_entry(tmp_path: Path, pool: LocalLauncher) -> None:
    entry = run_experiment(
        "toy_experiments:main", launcher=pool, out=tmp_path, progress=False, command="limbeck run toy"
    )
    assert list(entry["arms"]) == ["none", "kd", "method", "shuffled"]
    assert entry["seeds"] == [0, 1, 2, 3, 4]
    assert [claim["verdict"] for claim in entry["claims"]] == [
        "reproduced",
        "not reproduced",
        "not reproduced",
        "reproduced",
        "not reproduced",
        "inconclusive",
    ]
    assert "ZeroDivisionError" in entry["claims"][-1]["reason"]
    values = [record["metrics"]["accuracy"] for record in entry["arms"]["method"]["outcomes"].values()]
    assert entry["arms"]["method"]["summary"]["accuracy"]["mean"] == pytest.approx(sum(values) / 5)
    assert all(record["cost"]["seconds"] >= 0 for record in entry["arms"]["kd"]["outcomes"].values())
    assert entry["reference"]["teacher"]["accuracy"] == 0.9
    assert entry["data"] == {"toy.csv": "ab" * 32}
    assert not entry["failures"]
    assert not entry["partial"]
    assert entry["command"] == "limbeck run toy"
    assert {"python", "numpy", "torch"} <= set(entry["versions"])
    assert json.loads((tmp_path / "method" / "3.json").read_text()) == entry["arms"]["method"]["outcomes"]["3"]


def test_the_same_run_twice_gives_the_same_numbers(tmp_path: Path, pool: LocalLauncher) -> None:
    first = run_experiment("toy_experiments:main", size="smoke", jobs=1, out=tmp_path / "1", progress=False)
    second = run_experiment("toy_experiments:main", size="smoke", launcher=pool, out=tmp_path / "2", progress=False)
    metrics = [
        {arm: [run["metrics"] for run in record["outcomes"].values()] for arm, record in entry["arms"].items()}
        for entry in (first, second)
    ]
    assert metrics[0] == metrics[1]


def test_a_failing_and_a_dying_arm_do_not_take_the_others_along(tmp_path: Path, pool: LocalLauncher) -> None:
    said = io.StringIO()
    entry = run_experiment("toy_experiments:faulty", launcher=pool, out=tmp_path, console=Console(file=said, width=200))
    failed = {(one["arm"], one["seed"]): one for one in entry["failures"]}
    assert set(failed) == {("kd", 1), ("method", 2)}
    assert failed["kd", 1]["error"] == "ValueError: the rival broke"
    assert "toy_experiments.py" in failed["kd", 1]["traceback"]
    assert "SIGKILL" in failed["method", 2]["error"]
    assert sum(len(record["outcomes"]) for record in entry["arms"].values()) == 18
    assert entry["arms"]["none"]["outcomes"]["3"]["diverged"] == ["accuracy"]
    assert entry["arms"]["none"]["summary"]["accuracy"]["diverged"] == 1
    assert entry["partial"]
    assert "kd seed 1 FAILED: ValueError: the rival broke" in said.getvalue()
    assert "the rival broke" in (tmp_path / "kd" / "1.error.txt").read_text()
    reasons = [claim["reason"] for claim in entry["claims"]]
    assert "none diverged with seed 3" in reasons[0]
    assert "seeds 1, 2 ran on one side only" in reasons[2]


def test_a_second_call_runs_only_what_is_missing(tmp_path: Path, marks: Path) -> None:
    whole = run_experiment(SLOW, size="smoke", jobs=2, out=tmp_path / "run", progress=False)
    before = ran(marks)
    (tmp_path / "run" / "kd" / "1.json").unlink()
    again = run_experiment(SLOW, size="smoke", jobs=2, out=tmp_path / "run", progress=False)
    assert sorted([*before, "kd-1"]) == ran(marks)
    assert again["arms"]["kd"]["outcomes"]["1"]["metrics"] == whole["arms"]["kd"]["outcomes"]["1"]["metrics"]
    assert again["started"] == whole["started"]
    assert again["seconds"] >= whole["seconds"]


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_continues(tmp_path: Path, marks: Path, pool: LocalLauncher, way: int) -> None:
    call = f"run_experiment({SLOW!r}, size='smoke', jobs=2, out={str(tmp_path / 'run')!r})"
    # A test run that was started in the background ignores Ctrl-C, and hands that on to its children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{heard}; from limbeck.experiment import run_experiment; {call}"
    environment = os.environ | {"TOY_SLEEP": "2.0", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("*/[01].json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(way)
    _, said = process.communicate(timeout=20)
    assert process.returncode != 0
    kept = {path: path.read_text() for path in (tmp_path / "run").glob("*/[01].json")}
    assert 0 < len(kept) < 8
    if way == signal.SIGINT:
        assert f"{len(kept)} of 8 outcomes are kept" in said
    time.sleep(2.5)
    assert len(list((tmp_path / "run").glob("*/[01].json"))) == len(kept), "a worker outlived the run"
    started = len(ran(marks))
    assert started < 8
    entry = run_experiment(SLOW, size="smoke", jobs=2, out=tmp_path / "run", progress=False)
    assert all(path.read_text() == text for path, text in kept.items())
    assert len(ran(marks)) == started + 8 - len(kept)
    whole = run_experiment("toy_experiments:main", size="smoke", launcher=pool, out=tmp_path / "whole", progress=False)
    assert [claim["differences"] for claim in entry["claims"][:3]] == [
        claim["differences"] for claim in whole["claims"][:3]
    ]


def test_a_folder_of_another_size_is_refused(tmp_path: Path, pool: LocalLauncher) -> None:
    run_experiment("toy_experiments:main", size="smoke", out=tmp_path, launcher=pool, progress=False)
    with pytest.raises(UserError, match="a run whose size is smoke"):
        run_experiment("toy_experiments:main", size="full", out=tmp_path, launcher=pool, progress=False)


def test_outcomes_of_other_code_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "code" / "a_system.py"
    source.parent.mkdir()
    source.write_text("from toy_experiments import Toy\nEXPERIMENTS = {'main': Toy}\n")
    monkeypatch.setattr(sys, "path", [str(source.parent), *sys.path])
    run = {"size": "smoke", "out": tmp_path / "run", "progress": False}
    first = run_experiment("a_system:main", **run)
    assert run_experiment("a_system:main", **run)["code"] == first["code"]
    (tmp_path / "run" / "kd" / "0.json").unlink()
    source.write_text(source.read_text() + "# another line\n")
    with pytest.raises(UserError, match=r"outcomes of other code \(experiment/a_system.py changed since\)"):
        run_experiment("a_system:main", **run)
    assert run_experiment("a_system:main", **run, fresh=True)["code"] != first["code"]


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UserError, match="a new or empty folder"):
            run_experiment("toy_experiments:main", out=tmp_path, fresh=fresh, progress=False)
    assert (tmp_path / "thesis.tex").exists()


def test_a_part_of_the_arms_and_seeds_is_partial(tmp_path: Path, pool: LocalLauncher) -> None:
    entry = run_experiment(
        "toy_experiments:main", arms=["kd", "none"], seeds=[4, 7], out=tmp_path, launcher=pool, progress=False
    )
    assert list(entry["arms"]) == ["none", "kd"]
    assert entry["seeds"] == [4, 7]
    assert entry["partial"]
    assert entry["claims"][0]["reason"] == "method did not run"
    with pytest.raises(UserError, match="arms: given pld; allowed: none, kd, method, shuffled"):
        run_experiment("toy_experiments:main", arms=["pld"], out=tmp_path / "b", launcher=pool, progress=False)


def test_a_closed_gate_stops_a_full_run_and_voids_a_smoke_run(tmp_path: Path, pool: LocalLauncher) -> None:
    with pytest.raises(LimbeckError, match=r"teacher accuracy is 0.1, asked above 0.6\): results would be void"):
        run_experiment("toy_experiments:gated", out=tmp_path / "full", launcher=pool, progress=False)
    entry = run_experiment("toy_experiments:gated", size="smoke", out=tmp_path / "smoke", launcher=pool, progress=False)
    assert entry["claims"][0]["verdict"] == "inconclusive"
    assert "the gate did not pass" in entry["claims"][0]["reason"]


def test_workers_are_kept_have_one_thread_and_seed_the_global_generators(tmp_path: Path) -> None:
    with LocalLauncher(jobs=1) as pool:
        first = run_experiment(
            "toy_experiments:threads", size="smoke", launcher=pool, out=tmp_path / "a", progress=False
        )
        second = run_experiment(
            "toy_experiments:threads", size="smoke", launcher=pool, out=tmp_path / "b", progress=False
        )
    records = [
        run["metrics"]
        for entry in (first, second)
        for arm in entry["arms"].values()
        for run in arm["outcomes"].values()
    ]
    assert {record["threads"] for record in records} == {1.0}
    assert len({record["process"] for record in records}) == 1
    assert records[0]["process"] != os.getpid()
    # Seed 0 of arm a equals seed 0 of arm b, although the process met them one after the other.
    assert {(record["numpy"], record["torch"]) for record in records[::2]} == {
        (records[0]["numpy"], records[0]["torch"])
    }
    assert records[0]["numpy"] != records[1]["numpy"]


def test_a_local_ray_gives_the_same_numbers(tmp_path: Path, pool: LocalLauncher) -> None:
    local = run_experiment("toy_experiments:main", size="smoke", launcher=pool, out=tmp_path / "local", progress=False)
    rayed = run_experiment(
        "toy_experiments:main", size="smoke", jobs=2, launcher="ray", out=tmp_path / "ray", progress=False
    )
    for arm, record in local["arms"].items():
        for seed, outcome in record["outcomes"].items():
            assert rayed["arms"][arm]["outcomes"][seed]["metrics"] == outcome["metrics"]


def test_an_unknown_launcher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="launcher: given slurm; allowed: local, ray"):
        run_experiment("toy_experiments:main", launcher="slurm", out=tmp_path, progress=False)
