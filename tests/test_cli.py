"""The command line: forms that work, and for every wrong word one clear line and the exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import COMMANDS, main
from limbeck.job.settings import Settings

JOB = ["distill", "--teacher", "hf:t", "--student", "slice:layers=0", "--data", "csv:d.csv", "--out", "o"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command prints."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("limbeck: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings that reached the job, which does not run."""
    seen: list[Settings] = []

    def take(settings: Settings, progress: Any) -> dict[str, Any]:
        seen.append(settings)
        return {}

    monkeypatch.setattr("limbeck.job.run.run", take)
    return seen


def test_help_comes_in_half_a_second_and_without_torch() -> None:
    program = "import sys; from limbeck.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "assert not {'torch', 'lightning', 'transformers', 'pandas'} & set(sys.modules)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    assert all(name in shown for name in ("distill", *COMMANDS))
    assert used.ru_utime < 0.5


@pytest.mark.parametrize("command", ["distill", *COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: limbeck {command}")
    assert "_" not in "".join(word for word in shown.split() if word.startswith("--"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["distil"], "command: given distil; allowed: distill, systems"),
        (["--nope"], "command line: given --nope"),
        (["show"], "slug: given an empty value"),
        (["show", "pdl"], "pld"),
        (["new", "x"], "family: given an empty value"),
        (["new", "x", "poetry"], "family: given poetry; allowed: "),
        (["data", "fetch"], "action: given fetch; allowed: list, get, verify"),
        (["data", "get"], "names: given none; allowed: "),
        (["data", "get", "fashon"], "dataset-fashion-mnist"),
        (["export", "nowhere"], "run: given nowhere; allowed: the --out folder"),
        (["export", "nowhere", "--to", "onxx"], "to: given onxx; allowed: onnx, pt2"),
        (["measure", "nowhere"], "run: given nowhere"),
        (["report", "nowhere"], "run: given nowhere"),
        (["site"], "out: given an empty value"),
        (["run", "pld", "--seeds", "one"], "seeds: given one; allowed: a whole number"),
        (["run", "pld", "--record", "--seeds", "0,1"], "record: given part of an experiment; allowed: the full size"),
        (["run", "pld", "--check", "--smoke"], "check: given the smoke size; allowed"),
        (["run", "pld", "--launcher", "slurm"], "launcher: given slurm; allowed: local, ray"),
        (["cache", "--teacher", "hf:t"], "data: given an empty value"),
        (["cache", "look", "x"], "action: given look; allowed: write, show, verify, merge, recode"),
        (["cache", "show"], "folders: given none; allowed: limbeck cache show DIR"),
        (["cache", "verify", "nowhere"], "cache: given nowhere; allowed: an existing cache folder"),
        (["cache", "recode", "a"], "out: given an empty value"),
        (["cache", "merge", "nowhere"], "a cache with parts, or other caches"),
        (["distill"], "teacher: given an empty value"),
        ([*JOB, "stray"], "command line: given stray"),
        ([*JOB, "--epoch", "3"], "option of limbeck distill: given epoch; allowed: 46 names, the nearest are epochs"),
        ([*JOB, "--epochs"], "epochs: given an empty value; allowed: a value"),
        ([*JOB, "--epochs", "three"], "epochs: given three; allowed: a whole number"),
        ([*JOB, "--epochs", "0"], "epochs: given 0; allowed: 1 or more"),
        ([*JOB, "--lr", "fast"], "lr: given fast; allowed: a number"),
        ([*JOB, "--lr", "-1"], "lr: given -1"),
        ([*JOB, "--dry-run=maybe"], "dry_run: given maybe; allowed: true or false"),
        ([*JOB, "--baseline", "train"], "baseline: given train; allowed: auto, trained, untrained, none"),
        ([*JOB, "--export", "onnx,onx"], "export: given onx; allowed: onnx, pt2"),
        ([*JOB, "--columns", "text"], "columns: given text; allowed: NAME=VALUE"),
        ([*JOB, "--teacher", "classifier"], "teacher: given classifier; allowed: hf:NAME_OR_FOLDER"),
        ([*JOB, "--teacher", "slice:layers=0"], "slice: makes students"),
        ([*JOB, "--teacher", "hf:./classifer"], "no such file or folder"),
        ([*JOB, "--student", "onnx:x"], "student: given onnx:x; allowed: hf:NAME_OR_FOLDER"),
        ([*JOB, "--task", "classify"], "task: given classify; allowed: classification"),
        ([*JOB, "--optimizer", "adamax"], "optimizer: given adamax; allowed: adamw, adam, sgd"),
        ([*JOB, "--schedule", "cosin"], "schedule: given cosin; allowed: cosine, linear"),
        ([*JOB, "--warmup", "2"], "warmup: given 2"),
        ([*JOB, "--resume", "--overwrite"], "resume: given together with overwrite"),
        ([*JOB, "--objective", "kll(temperature=4)"], "names, the nearest are kl, "),
        ([*JOB, "--objective", "__import__('os')"], "objective"),
        ([*JOB, "--precision", "bf17"], "machine: given accelerator=auto, devices=1, strategy=auto, precision=bf17"),
        ([*JOB, "--accelerator", "tpux"], "machine: given accelerator=tpux"),
        ([*JOB, "--strategy", "fsdp", "--accelerator", "cpu"], "strategy: given fsdp; allowed: ddp"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, *words)


def test_friendly_forms(job: list[Settings]) -> None:
    words = ["--export", "onnx,pt2", "--columns", "text=body,label=stars", "--student-taps", "mid=a.b=c", "--dry-run"]
    assert main([*JOB, *words, "--batch-size=8", "--cache", "off", "--augment", "false", "--lr", "1e-3"]) == 0
    assert main([*JOB, "--export", "onnx", "--export", "pt2", "--gradient_clip", "null"]) == 0
    assert main([*JOB, "--export", "[onnx]", "--columns", '{"text": "a,b"}']) == 0
    first, second, third = job
    assert first.export == second.export == ["onnx", "pt2"]
    assert first.columns == {"text": "body", "label": "stars"}
    assert first.student_taps == {"mid": "a.b=c"}
    assert (first.dry_run, first.batch_size, first.cache, first.augment, first.lr) == (True, 8, "off", False, 1e-3)
    assert second.gradient_clip is None
    assert third.columns == {"text": "a,b"}


def test_a_file_of_settings_and_options_that_overrule_it(job: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "teacher: hf:t\nstudent: slice:layers=0\ndata: csv:d.csv\nout: o\nepochs: 3\nlr: 1e-3\nexport: onnx\n"
        "cache: off\ncolumns: {text: body}\ndry-run: true\ngradient_clip: null\n"
    )
    assert main(["distill", "--epochs", "5", "--config", str(file)]) == 0
    assert main(["distill", "--config", str(file), "--export", "pt2", "--dry-run=false"]) == 0
    first, second = job
    assert (first.epochs, first.lr, first.export, first.cache, first.dry_run) == (5, 1e-3, ["onnx"], "off", True)
    assert (first.columns, first.gradient_clip) == ({"text": "body"}, None)
    assert (second.epochs, second.export, second.dry_run) == (3, ["pt2"], False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3\n", "given epoch; allowed: 44 names, the nearest are epochs"),
        ("epochs: three\n", "epochs: given three; allowed: a whole number"),
        ("- epochs\n", "allowed: lines of KEY: VALUE; the file holds a list"),
        ("", "the file holds nothing"),
        ("epochs: [\n", "a YAML file of plain settings"),
        ("config: other.yaml\n", "given config"),
        ("allow_py: true\n", "no file may let code run"),
        ("teacher: {class_path: os.system}\n", 'teacher: given {"class_path"'),
        ("epochs: !!python/object/apply:os.mkdir [made]\n", "python/object/apply"),
        ("x: !!python/name:os.system\n", "python/name"),
    ],
)
def test_a_wrong_file_of_settings(
    text: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(text)
    assert expected in refused(capsys, "distill", *JOB[3:], "--config", "job.yaml")
    assert not Path("made").exists()


def test_a_missing_file_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert "config: given missing.yaml" in refused(capsys, *JOB, "--config", "missing.yaml")


@pytest.mark.parametrize(
    ("words", "key"),
    [(["systems"], "slug"), (["data"], "name"), (["doctor"], "what")],
)
def test_lists_as_json(words: list[str], key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row[key] for row in rows)
    assert main(words) == 0
    assert rows[0][key] in capsys.readouterr().out


def test_a_system_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "pld", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["slug"] == "pld"
    assert main(["show", "pld"]) == 0
    assert shown["title"].split()[0] in capsys.readouterr().out


def test_a_new_system_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["new", "my-method", "classification", "--root", str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written
    assert all(path.is_file() for path in written)
    assert "taken" in refused(capsys, "new", "my-method", "classification", "--root", str(tmp_path))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_a_full_disk_and_an_interruption_outside_of_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "o/result.json")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.job.run.run", full)
    assert "o/result.json: No space left on device" in refused(capsys, *JOB)
    monkeypatch.setattr("limbeck.job.run.run", stopped)
    assert main(JOB) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_cache_is_shown_verified_recoded_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from limbeck.cache import CacheWriter

    for part in (0, 1):
        ids = torch.arange(10) + 10 * part
        with CacheWriter(tmp_path / "a", {"teacher": "t"}, "float32", part=(part, 2)) as writer:
            writer.write(ids, {"logits": torch.randn(10, 30)})
            writer.finish()
    for words, expected in (
        (["verify", "a"], {"shards": 2, "intact": True}),
        (["merge", "a"], {"samples": 20, "parts": 0, "complete": True}),
        (["recode", "a", "--out", str(tmp_path / "b"), "--codec", "packed:8"], {"samples": 20}),
        (["show", "b"], {"samples": 20, "complete": True}),
    ):
        assert main(["cache", words[0], str(tmp_path / words[1]), *words[2:]]) == 0
        assert expected.items() <= json.loads(capsys.readouterr().out).items()
    next((tmp_path / "b").glob("*.safetensors")).write_bytes(b"torn")
    assert main(["cache", "verify", str(tmp_path / "b")]) == 2
    assert "4 bytes instead of" in capsys.readouterr().err
