"""How numbers are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from limbeck.report.measures import grouped, measure
from limbeck.report.tables import (
    against_teacher,
    best_models,
    format_difference,
    format_duration,
    format_interval,
    format_spread,
    format_value,
    rich_table,
)
from tests.report.samples import result


@pytest.mark.parametrize(
    ("metric", "value", "written"),
    [
        ("accuracy", 0.8421, "84.2%"),
        ("validation_accuracy", 1.0, "100.0%"),
        ("recall@10", 0.814, "0.814"),
        ("mrr", 0.05, "0.0500"),
        ("cosine", 1.0, "1.000"),
        ("nll", 12.345, "12.35"),
        ("parameters", 4138, "4,138"),
        ("parameters", 22_713_216, "22.7 M"),
        ("bytes", 999_600, "1.00 MB"),
        ("bytes", 512, "512 B"),
        ("flops", 2.72e9, "2.72 G"),
        ("latency_p50_ms", 3.4, "3.40 ms"),
        ("latency_p50_ms", 1234.5, "1,234 ms"),
        ("throughput", 1240.3, "1,240 /s"),
        ("throughput", 3.14159, "3.14 /s"),
        ("seconds", 725.0, "12 min 5 s"),
        ("whatever", 7, "7.000"),
        ("whatever", 1200, "1,200"),
        ("whatever", 1.5e-7, "1.5e-07"),
        ("accuracy", float("nan"), "diverged"),
        ("accuracy", None, "–"),
    ],
)
def test_values(metric: str, value: float | None, written: str) -> None:
    assert format_value(metric, value) == written


def test_spreads_differences_and_intervals() -> None:
    assert format_spread("accuracy", 0.8421, 0.0032) == "84.2 ± 0.3%"
    assert format_spread("accuracy", 0.8421, 0.00004) == "84.2 ± 0.004%"
    assert format_spread("recall@10", 0.814, 0.01234) == "0.814 ± 0.012"
    assert format_spread("bytes", 62_461_440, 0.0) == "62.5 MB ± 0 B"
    assert format_spread("accuracy", 0.8421, None) == "84.2%"
    assert format_difference("accuracy", 0.0187) == "+1.9 points"
    assert format_difference("accuracy", -0.0007) == "−0.07 points"
    assert format_difference("accuracy", 0) == "0"
    assert format_difference("mrr", -0.0312) == "−0.0312"
    assert format_interval("accuracy", [-0.0004, 0.0031]) == "−0.04 to +0.31 points"
    assert format_interval("accuracy", [0.0004, 0.031]) == "+0.0 to +3.1 points"
    assert format_interval("accuracy", None) == "–"
    assert [format_duration(seconds) for seconds in (0.25, 48, 3600, 7800)] == [
        "0.2 s",
        "48 s",
        "1 h 0 min",
        "2 h 10 min",
    ]


def test_ratios_to_the_teacher_are_put_in_words() -> None:
    assert against_teacher("recall@10", 0.781, 0.814) == "95.9% of the teacher"
    assert against_teacher("latency_p50_ms", 3.4, 9.31) == "2.7× faster"
    assert against_teacher("latency_p50_ms", 12.0, 9.0) == "1.33× slower"
    assert against_teacher("throughput", 478.0, 163.2) == "2.9× faster"
    assert against_teacher("bytes", 62_461_440, 90_852_864) == "1.45× smaller"
    assert against_teacher("parameters", 10, 10) == "the same"
    assert against_teacher("flops", 1.0, 1000.0) == "1,000× fewer"
    assert against_teacher("cosine", 0.9, 1.0) == ""
    assert against_teacher("accuracy", 0.5, None) == ""
    assert against_teacher("nll", 0.5, 0.4) == ""


def test_the_best_model_is_marked_where_there_is_one() -> None:
    models = result()["models"]
    assert best_models("recall@10", models) == {"teacher"}
    assert best_models("bytes", models) == {"student", "student without distillation"}
    assert best_models("cosine", models) == {"student"}, "a teacher's agreement with itself is no achievement"
    assert best_models("whatever", {"a": {"whatever": 1.0}, "b": {"whatever": 2.0}}) == set()
    assert best_models("accuracy", {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.50001}}) == set()


def test_metrics_are_grouped_with_the_first_one_first() -> None:
    groups = grouped(["bytes", "mrr", "recall@1", "recall@10", "kl", "kl"], first="recall@10")
    assert [(name, [one.name for one in measures]) for name, measures in groups] == [
        ("Quality", ["recall@10", "mrr", "recall@1"]),
        ("Agreement with the teacher", ["kl"]),
        ("Size", ["bytes"]),
    ]
    assert measure("teacher_accuracy").kind == "percent"
    assert measure("student_ece").better == "lower"


def test_the_terminal_table_holds_every_model_and_measure() -> None:
    said = io.StringIO()
    Console(file=said, width=140).print(rich_table(result()))
    for text in (
        "teacher",
        "student without distillation",
        "recall@10 ↑",
        "0.781",
        "95.9% of the teacher",
        "2.7× faster",
    ):
        assert text in said.getvalue()


def test_a_table_of_one_model_has_no_comparison() -> None:
    said = io.StringIO()
    Console(file=said, width=100).print(rich_table({"models": {"student": {"accuracy": 0.5}}}))
    assert "50.0%" in said.getvalue()
    assert "against" not in said.getvalue()
