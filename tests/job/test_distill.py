"""``limbeck distill`` from references to a finished folder, on small real inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import limbeck
from limbeck.errors import UserError
from limbeck.job.finished import export_student, measure_again, reopen, write_report

COMMON = {"quiet": True, "batch_size": 16, "epochs": 2, "seed": 1}


def test_text_classifier_from_a_table(text_classifier: Path, text_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = limbeck.distill(
        f"hf:{text_classifier}", "slice:layers=0,3", f"csv:{text_table}", out, export=["onnx"], **COMMON
    )
    assert set(result["models"]) == {"teacher", "student without distillation", "student"}
    teacher, student = result["models"]["teacher"], result["models"]["student"]
    assert student["parameters"] < teacher["parameters"]
    assert {"accuracy", "ece", "agreement", "latency_p50_ms", "throughput", "bytes", "flops"} <= set(student)
    assert result["exports"][0]["max_relative_difference"] <= result["exports"][0]["tolerance"]
    assert {choice["key"] for choice in result["plan"]} >= {"objective", "batch_size", "lr", "epochs"}
    assert all(choice["reason"] for choice in result["plan"])

    from transformers import AutoModelForSequenceClassification

    opened = AutoModelForSequenceClassification.from_pretrained(out / "student")
    assert opened.config.num_hidden_layers == 2
    assert opened.config.id2label == {0: "negative", 1: "positive"}
    for name in ("report.html", "result.json", "config.yaml", "student.onnx", "student/README.md"):
        assert (out / name).stat().st_size > 100, name

    plan, reopened = reopen(out)
    batch = {"input": plan.student.prepare(["good film", "sad tale plot"])}
    before = opened.eval()(**batch["input"]).logits
    assert torch.allclose(reopened.forward(reopened.module.eval(), batch)["logits"], before, atol=1e-6)
    again = measure_again(out)
    assert again["models"]["student"]["accuracy"] == student["accuracy"]
    assert export_student(out, "pt2", None)["format"] == "pt2"
    (out / "report.html").unlink()
    assert write_report(out).stat().st_size > 100


def test_image_folder_with_a_small_student(image_folder: Path, tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        # The brightest channel is the class: an exact teacher by hand.
        teacher[2].weight.copy_(20 * torch.eye(3))
        teacher[2].bias.zero_()
    options = {**COMMON, "epochs": 12, "lr": 1e-2}
    result = limbeck.distill(teacher, "small:cnn_4k", f"folder:{image_folder}", tmp_path / "out", **options)
    assert result["models"]["teacher"]["accuracy"] == 1.0
    assert result["models"]["student"]["accuracy"] > 0.8

    # The model card's own lines open and run it.
    folder = tmp_path / "out" / "student"
    snippet = (folder / "README.md").read_text().split("```")[1].removeprefix("python")
    picture, found = str(image_folder / "b_green" / "0.png"), {}
    exec(snippet.replace("FOLDER", str(folder)).replace("photo.png", picture), found)
    assert found["network"].labels[found["signals"]["logits"].argmax()] == "b_green"


def test_a_teacher_that_does_not_help_is_named(image_folder: Path, tmp_path: Path) -> None:
    wrong = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        wrong[2].weight.copy_(100 * torch.eye(3).roll(1, 0))
        wrong[2].bias.zero_()
    result = limbeck.distill(
        wrong, "small:cnn_4k", f"folder:{image_folder}", tmp_path / "out", **{**COMMON, "epochs": 6, "objective": "kl"}
    )
    models = result["models"]
    assert models["student without distillation"]["accuracy"] > models["student"]["accuracy"]
    assert result["notes"][0].startswith("The teacher did not help here: without it the student's accuracy is ")
    assert "The teacher did not help here" in (tmp_path / "out" / "report.html").read_text()


def test_language_model(language_model: Path, text_table: Path, tmp_path: Path) -> None:
    result = limbeck.distill(
        f"hf:{language_model}", "slice:layers=0,2", f"csv:{text_table}", tmp_path / "out", task="causal-lm", **COMMON
    )
    figures = result["models"]["student"]
    assert 1 < figures["perplexity"] < 16
    assert figures["perplexity"] < result["models"]["teacher"]["perplexity"]


def test_regression_and_features_of_own_networks(tmp_path: Path) -> None:
    from limbeck.data import Split, Splits
    from limbeck.data.references import DataSet

    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = x.sum(1)
    parts = [Split(x[a:b], y[a:b], torch.arange(a, b)) for a, b in ((0, 140), (140, 170), (170, 200))]
    teacher = nn.Sequential(nn.Linear(6, 1, bias=False))
    nn.init.ones_(teacher[0].weight)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    data = DataSet(Splits(*parts), "tensor", "regression")
    result = limbeck.distill(teacher, student, data, tmp_path / "regression", **{**COMMON, "epochs": 30, "lr": 1e-2})
    assert result["models"]["teacher"]["mse"] < 1e-10
    assert result["models"]["student"]["mse"] < 0.5 * float(y.var())

    wide = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    narrow = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    taps = {"student_taps": {"embedding": "2"}, "teacher_taps": {"embedding": "2"}}
    result = limbeck.distill(wide, narrow, data, tmp_path / "features", task="features", **taps, **COMMON)
    assert 0 < result["models"]["student"]["cka"] <= 1


def test_same_seed_same_student_and_resume_after_interruption(
    text_classifier: Path, text_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.engine.distiller import Distiller

    arguments = (f"hf:{text_classifier}", "slice:layers=1", f"csv:{text_table}")
    options = {**COMMON, "baseline": "none"}
    whole = limbeck.distill(*arguments, tmp_path / "whole", **options)
    steps = {"left": 8}
    original = Distiller.training_step

    def cut(self: Distiller, batch: object, index: int) -> object:
        steps["left"] -= 1
        if steps["left"] < 0:
            raise KeyboardInterrupt
        return original(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(Distiller, "training_step", cut)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        limbeck.distill(*arguments, tmp_path / "cut", **options)
    monkeypatch.setattr(Distiller, "training_step", original)
    with pytest.raises(UserError, match="resume"):
        limbeck.distill(*arguments, tmp_path / "cut", **options)
    resumed = limbeck.distill(*arguments, tmp_path / "cut", **options, resume=True)
    for measure in ("accuracy", "nll", "kl"):
        assert resumed["models"]["student"][measure] == whole["models"]["student"][measure]
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_dry_run_trains_nothing(text_classifier: Path, text_table: Path, tmp_path: Path) -> None:
    preview = limbeck.distill(
        f"hf:{text_classifier}", "slice:layers=0", f"csv:{text_table}", tmp_path / "out", dry_run=True, quiet=True
    )
    assert preview["costs"]["seconds"] > 0
    assert preview["costs"]["cache_bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_settings_written_by_a_run_repeat_it(text_classifier: Path, text_table: Path, tmp_path: Path) -> None:
    arguments = (f"hf:{text_classifier}", "slice:layers=0", f"csv:{text_table}", tmp_path / "a")
    first = limbeck.distill(*arguments, **COMMON, baseline="none")
    settings = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    again = limbeck.distill(**{**settings, "out": tmp_path / "b"}, quiet=True)
    assert again["models"]["student"]["nll"] == first["models"]["student"]["nll"]
    assert json.loads((tmp_path / "a" / "result.json").read_text())["models"] == first["models"]
