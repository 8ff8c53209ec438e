"""The pictures as text: what they hold, and that they belong to the page."""

from __future__ import annotations

import re

import pytest

from limbeck.report import experiment_plots, plots
from limbeck.report.svg import COLOUR, Picture
from tests.report.samples import entry, result


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def check(drawn: Picture) -> None:
    for svg in filter(None, (drawn.wide, drawn.narrow)):
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")
        assert not re.search(r"xmlns|<style|<metadata|xlink|DejaVu", svg)
        assert not [placeholder for placeholder in COLOUR.values() if placeholder in svg]
        assert "var(--" in svg


def test_every_arm_has_its_row_points_and_numbers() -> None:
    drawn = experiment_plots.arms("a", entry(), "accuracy")
    check(drawn)
    for svg in (drawn.wide, drawn.narrow):
        written = texts(svg)
        assert {"none", "kd", "ours", "ours-uniform", "random", "teacher"} <= set(written)
        assert len([text for text in written if "±" in text]) == 5
        assert svg.count("<use ") >= 24 + 5, "a point for every seed that did not diverge, and a mark for every mean"
    assert drawn.alt.startswith("accuracy by arm: none ")


def test_a_claims_strip_marks_zero_margin_and_mean() -> None:
    drawn = experiment_plots.claim_strip("c", entry()["claims"][0])
    check(drawn)
    assert "margin +1.0 points" in texts(drawn.wide)
    assert drawn.narrow == ""
    assert "margin 1" in drawn.alt


def test_curves_have_a_line_and_a_name_for_every_arm_and_survive_gaps() -> None:
    series = {
        "a": [[0.1, 0.2, None], [0.3, 0.4]],
        "b": [[0.5, 0.6, 0.7]],
        "nothing": [[None, None, None]],
        "empty": [[]],
    }
    drawn = plots.curves("k", "validation_accuracy", series)
    check(drawn)
    assert {"a", "b"} <= set(texts(drawn.wide))
    assert "empty" not in texts(drawn.wide)
    assert {"a", "b"} <= set(texts(drawn.narrow)), "a phone has the names in a legend"


def test_quality_against_latency_needs_two_measured_models() -> None:
    models = result()["models"]
    drawn = plots.quality_latency("q", models, "recall@10")
    assert drawn is not None
    check(drawn)
    assert {"teacher", "student", "student without distillation"} <= set(texts(drawn.wide))
    assert plots.quality_latency("q", {"student": models["student"]}, "recall@10") is None
    assert plots.quality_latency("q", models, "no_such_metric") is None


def test_a_reliability_diagram_names_its_arms() -> None:
    bins = {"confidence": [0.2, 0.9], "accuracy": [0.3, 0.8], "share": [0.1, 0.9]}
    drawn = plots.reliability("r", {"none": bins, "ours": bins})
    check(drawn)
    assert {"none", "ours"} <= set(texts(drawn.wide))


def test_labels_that_would_overlap_are_moved_apart_as_little_as_possible() -> None:
    assert plots._spread([10.0, 100.0], 16) == [10.0, 100.0]
    assert plots._spread([52.0, 50.0, 48.0], 10) == pytest.approx([60.0, 50.0, 40.0])
    moved = plots._spread([0.0, 1.0, 50.0, 51.0], 10)
    assert moved == pytest.approx([-4.5, 5.5, 45.5, 55.5])
