"""What goes wrong, through the command: one line that says what to change, and nothing trained."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.cli import main
from limbeck.data import Split, Splits
from limbeck.data.references import DataSet
from limbeck.errors import UserError
from limbeck.job import distill

Run = Callable[..., int]
Refused = Callable[..., str]
QUICK = ["--epochs", "1", "--batch-size", "16", "--baseline", "none", "--precision", "32-true"]


@pytest.fixture
def job(text_classifier: Path, text_table: Path, tmp_path: Path) -> Run:
    """``limbeck distill`` of a text classifier; options given are added or overrule."""

    def run(*words: str, out: str | Path = tmp_path / "out") -> int:
        common = ["--student", "slice:layers=0", "--data", f"csv:{text_table}"]
        # A teacher that is given again is one more teacher.
        common += [] if "--teacher" in words else ["--teacher", f"hf:{text_classifier}"]
        return main(["distill", *common, "--out", str(out), *QUICK, *words])

    return run


@pytest.fixture
def refused(job: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """The last line of a job that was refused before it trained or asked a teacher about all samples."""

    def run(*words: str, **options: Any) -> str:
        assert job(*words, **options) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert not (tmp_path / "out" / "training").exists()
        assert not (tmp_path / "out" / "cache").exists()
        last = told.splitlines()[-1]
        assert last.startswith("limbeck: ")
        return last

    return run


def table(path: Path, rows: list[tuple[object, ...]], header: str = "text,label") -> str:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return f"csv:{path}"


@pytest.fixture
def other_classifier(text_classifier: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the classifier's folder with other class names or other weights."""

    def make(labels: list[str] | None = None, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Path:
        folder = tmp_path / "other"
        shutil.copytree(text_classifier, folder)
        if labels is not None:
            config = json.loads((folder / "config.json").read_text())
            config["id2label"] = {str(place): name for place, name in enumerate(labels)}
            config["label2id"] = {name: place for place, name in enumerate(labels)}
            (folder / "config.json").write_text(json.dumps(config))
        if change is not None:
            weights = load_file(folder / "model.safetensors")
            weights["classifier.weight"] = change(weights["classifier.weight"])
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


# References.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--teacher", "hf:/nowhere/at/all"], "teacher: given hf:/nowhere/at/all; allowed: an existing path"),
        (["--teacher", "timm:resnet999"], "teacher: given timm:resnet999; allowed: "),
        (["--teacher", "pt2:missing.pt2"], "teacher: given "),
        (["--teacher", "py:os:getcwd"], "--allow-py"),
        (["--student", "slice:layers=7"], "student layers: given 7; allowed: numbers from 0 to 3"),
        (["--student", "slice:depth=2"], "student: given slice:depth=2; allowed: slice: with layers=0,2,5"),
        (["--student", "width:hidden_size=7"], "student hidden_size: given 7; allowed: a multiple of 2"),
        (["--student", "small:cnn_16k"], "student: given small:cnn_16k; allowed: small:bag, small:transformer"),
        (["--student", "small:transformr"], "student: given small:transformr; allowed: "),
        (["--data", "csv:reviews.csv"], "data: given csv:reviews.csv; allowed: an existing path"),
        (["--data", "testbed:digit"], "testbed: given digit; allowed: "),
        (["--columns", "text=body"], "columns.text: given body; allowed: text, label"),
        (["--columns", "txt=text"], "columns: given txt; allowed: text, text_pair, label, image"),
        (["--max-length", "600"], "max_length: given 600; allowed: 1 to "),
        (
            ["--cache", "kept", "--objective", "cross_entropy"],
            "cache: given kept; allowed: off; the objective needs no",
        ),
        (["--augment"], "augment: given True; allowed: images only"),
        (["--select", "best", "--task", "features"], "select: given best; allowed: last"),
    ],
)
def test_wrong_references_and_options(words: list[str], expected: str, refused: Refused) -> None:
    assert expected in refused(*words)


def test_missing_libraries(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'limbeck[export]'" in refused("--export", "onnx")
    assert "pip install mlflow" in refused("--logger", "mlflow")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'limbeck[vision]'" in refused("--teacher", "timm:resnet18")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'limbeck[language]'" in refused()


# Classes and vocabularies.


def test_label_spaces_that_differ(refused: Refused, other_classifier: Callable[..., Path], tmp_path: Path) -> None:
    moods = table(tmp_path / "moods.csv", [(f"good {n}", ("happy", "sad")[n % 2]) for n in range(40)])
    assert "teacher labels: given no class 'happy' (negative, positive); allowed: the data's" in refused(
        "--data", moods
    )
    three = table(tmp_path / "three.csv", [(f"good {n}", n % 3) for n in range(60)])
    assert "teacher labels: given 2 classes (negative, positive); allowed: the 3 classes" in refused("--data", three)
    one = table(tmp_path / "one.csv", [(f"good {n}", "positive") for n in range(20)])
    assert "one class only; allowed: at least two classes" in refused("--data", one)


def test_classes_in_another_order_are_put_in_order(
    job: Run, other_classifier: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = other_classifier(["positive", "negative"])
    assert job("--teacher", f"hf:{folder}", "--dry-run", "--json") == 0
    reasons = [choice["reason"] for choice in json.loads(capsys.readouterr().out)["plan"]]
    assert any("teacher: the network has the same classes in another order" in reason for reason in reasons)


def test_labels_out_of_range(tmp_path: Path) -> None:
    parts = [Split(torch.randn(20, 3), torch.full((20,), label), torch.arange(20) + 20 * label) for label in (0, 1, 5)]
    data = DataSet(Splits(*parts), "tensor", "classification", num_classes=3)
    network = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match="data labels of test: given 5; allowed: class numbers 0 to 2"):
        distill(network, torch.nn.Linear(3, 3), data, tmp_path / "out", quiet=True)


def test_vocabularies_that_differ(language_model: Path, refused: Refused, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(language_model, other)
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"good"', '"fair"'))
    assert len(AutoTokenizer.from_pretrained(other)) == 16
    words = ["--teacher", f"hf:{language_model}", "--student", f"hf:{other}", "--task", "causal-lm"]
    assert "student tokenizer: given another vocabulary: 1 tokens are missing, 1 are new" in refused(*words)


# Teachers, students and objectives.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_answers_nonsense(value: float, refused: Refused, other_classifier: Callable[..., Path]) -> None:
    folder = other_classifier(change=lambda weight: weight * value)
    assert "teacher signal logits: NaN or infinite for" in refused("--teacher", f"hf:{folder}")


def test_a_tap_that_matches_nothing(refused: Refused) -> None:
    line = refused("--task", "features", "--student-taps", "embedding=bert.encoder.layr.0")
    assert "bert.encoder.layr.0; allowed: " in line
    assert "encoder.layer.0" in line


def test_a_student_that_the_objective_cannot_read(refused: Refused) -> None:
    line = refused("--objective", "cosine")
    assert "embedding" in line
    assert "logits" in line


# Data.


def test_empty_and_tiny_data(refused: Refused, tmp_path: Path) -> None:
    assert "the file is empty" in refused("--data", table(tmp_path / "a.csv", [], header="").replace("\n", ""))
    assert "at least one row" in refused("--data", table(tmp_path / "b.csv", []))
    assert "at least two classes" in refused("--data", table(tmp_path / "c.csv", [("good", "positive")]))
    few = table(tmp_path / "d.csv", [("good", "positive"), ("bad", "negative")])
    assert "data: given 2 samples, 2 of them distinct; allowed: at least 3" in refused("--data", few)
    unlabelled = table(tmp_path / "e.csv", [("good film", "positive"), ("bad film", "")] * 10)
    assert refused("--data", unlabelled)


def test_corrupt_images(image_folder: Path, refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    whole = (folder / "a_red" / "0.png").read_bytes()
    (folder / "a_red" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b_green" / "1.png").write_bytes(b"no image")
    words = ["--teacher", "timm:resnet10t,pretrained=false,img_size=16", "--student", "small:cnn_4k"]
    words += ["--data", f"folder:{folder}", "--objective", "cross_entropy"]
    line = refused(*words)
    assert "2 of 120 images that cannot be decoded" in line
    assert "a_red/1.png" in line
    assert "b_green/1.png: not an image" in line
    assert refused(*words[:4], "--data", f"folder:{tmp_path / 'imags'}").endswith("no such folder")
    teacher = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    seen = distill(teacher, "small:cnn_4k", f"folder:{folder}", on_corrupt="skip", dry_run=True, quiet=True)
    assert any("left out 2 images" in choice["reason"] for choice in seen["plan"])


# The output folder, the disk and the cache.


def test_where_the_output_cannot_go(refused: Refused, tmp_path: Path) -> None:
    assert "out: given an empty value" in refused(out="")
    file = tmp_path / "file"
    file.write_text("mine")
    assert "a file of that name is there" in refused(out=file)
    assert "allowed: a folder that can be written; Not a directory" in refused(out=file / "below")
    foreign = tmp_path / "foreign"
    (foreign / "student").mkdir(parents=True)
    assert "its student are not of limbeck distill" in refused("--overwrite", out=foreign)
    assert "run: given " in refused("--resume", "--teacher", "", out=tmp_path / "nothing")


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """As on a disk that is full: no file grows beyond ``limit`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [700, 3_000, 30_000])
def test_a_full_disk(limit: int, job: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with small_files(limit):
        assert job() == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("limbeck: ")
    assert "File too large" in told or "full" in told
    assert not (tmp_path / "out" / "result.json").exists()
    assert job("--resume") == 0


@pytest.mark.slow
def test_a_cache_of_something_else(
    job: Run, text_classifier: Path, text_table: Path, other_classifier: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kept = tmp_path / "kept"
    made = ["cache", "--teacher", f"hf:{text_classifier}", "--data", f"csv:{text_table}", "--out", str(kept)]
    assert main(made) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 96
    assert job("--cache", str(kept)) == 0
    folder = other_classifier(change=lambda weight: weight * 2)
    for words, part in (
        (["--teacher", f"hf:{folder}"], "teacher"),
        (["--max-length", "4"], "preprocessing"),
        (
            [
                "--seed",
                "1",
                "--data",
                table(tmp_path / "x.csv", [(f"good {n}", ("positive", "negative")[n % 2]) for n in range(60)]),
            ],
            "data",
        ),
    ):
        capsys.readouterr()
        assert job("--cache", str(kept), *words, out=tmp_path / part) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"limbeck: cache: given {kept}; stale: ")
        assert part in last
    (tmp_path / "no-cache").mkdir()
    (tmp_path / "no-cache" / "manifest.json").write_text("{}")
    assert job("--cache", str(tmp_path / "no-cache"), out=tmp_path / "z") == 2
    assert "foreign" in capsys.readouterr().err.splitlines()[-1]


# Stopping and going on.


@pytest.fixture(scope="module")
def long_job(text_classifier: Path, text_table: Path) -> list[str]:
    """A job of some seconds whose weights are compared bit for bit."""
    words = ["--teacher", f"hf:{text_classifier}", "--student", "slice:layers=0,1", "--data", f"csv:{text_table}"]
    return ["distill", *words, "--epochs", "60", "--batch-size", "8", "--baseline", "none", "--precision", "32-true"]


@pytest.fixture(scope="module")
def uninterrupted(long_job: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([*long_job, "--out", str(out)]) == 0
    return (out / "student" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_to_the_same_bits(
    kind: signal.Signals, long_job: list[str], uninterrupted: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "limbeck.cli", *long_job, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, deadline = out / "training" / "last.ckpt", time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    told = process.communicate(timeout=60)[1]
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert told.splitlines()[-1].startswith("limbeck: stopped on request at step ")
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert main([*long_job, "--out", str(out)]) == 2
    assert "it holds an interrupted run; --resume continues it" in capsys.readouterr().err
    assert main([*long_job, "--out", str(out), "--resume", "--lr", "0.1"]) == 2
    assert "lr: given 0.1; allowed: None; a resumed run keeps its settings" in capsys.readouterr().err
    assert main(["distill", "--out", str(out), "--resume"]) == 0
    assert (out / "student" / "model.safetensors").read_bytes() == uninterrupted


@pytest.mark.slow
def test_a_finished_run(
    job: Run, refused: Refused, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert job("--json") == 0
    first = json.loads(capsys.readouterr().out)
    weights = (out / "student" / "model.safetensors").read_bytes()
    assert job() == 2
    assert "it holds a finished run; --overwrite replaces it" in capsys.readouterr().err
    assert job("--overwrite", "--objective", "kll") == 2
    assert (out / "result.json").exists(), "nothing is removed for a run that cannot begin"

    def untrained(*_: Any) -> None:
        raise AssertionError("a finished run was trained again")

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.job.run.train_student", untrained)
        assert job("--resume", "--export", "pt2", "--json") == 0
        again = json.loads(capsys.readouterr().out)
        assert [export["format"] for export in again["exports"]] == ["pt2"]
        assert again["models"] == first["models"]
        assert main(["distill", "--out", str(out), "--resume"]) == 0
    assert main(["measure", str(out), "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out.strip())["models"]["student"]["accuracy"]
        == first["models"]["student"]["accuracy"]
    )
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert "pt2" in (out / "report.html").read_text()
    assert main(["export", str(out), "--to", "pt2", "--out", str(tmp_path / "s.pt2")]) == 0
    assert (tmp_path / "s.pt2").stat().st_size > 1000
    assert job("--overwrite") == 0
    assert (out / "student" / "model.safetensors").read_bytes() == weights
