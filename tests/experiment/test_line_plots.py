from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.experiment import Outcome
from limbeck.experiment.line_plots import lines


def drawn(uri: str) -> ElementTree.Element:
    head, _, content = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(content))


def elements(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return list(root.iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def picture() -> str:
    x = np.linspace(0, 1, 101)
    fits = {f"generation {number}": (x, number * np.sin(x)) for number in range(1, 7)}
    return lines(fits, dashed={"a < b": (x, x)}, points={"data": ([0, 1], [0, 1])}, x_label="x & y", y_label="f")


def test_every_curve_is_drawn_inside_the_picture_and_named() -> None:
    root = drawn(picture())
    curves = elements(root, "polyline")
    assert len(curves) == 7
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for curve in curves:
        corners = [tuple(map(float, corner.split(","))) for corner in curve.attrib["points"].split()]
        assert len(corners) == 101
        assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
    words = [one.text for one in elements(root, "text")]
    assert {"generation 1", "generation 6", "a < b", "data", "x & y", "f"} <= set(words)
    assert len({curve.attrib["stroke"] for curve in curves[:6]}) == 6


def test_more_is_higher_and_ticks_are_numbers_of_the_axis() -> None:
    root = drawn(lines({"up": ([0, 2], [10, 30])}, x_label="x", y_label="y"))
    (curve,) = elements(root, "polyline")
    (x0, y0), (x1, y1) = [tuple(map(float, corner.split(","))) for corner in curve.attrib["points"].split()]
    assert x1 > x0
    assert y1 < y0
    assert {"10", "20", "30"} <= {one.text for one in elements(root, "text")}


def test_a_constant_curve_and_a_single_point_can_be_drawn() -> None:
    drawn(lines({"flat": ([0, 1], [2, 2])}, x_label="x", y_label="y"))
    drawn(lines({}, points={"one": ([3], [4])}, x_label="x", y_label="y"))


def test_it_is_small_and_an_outcome_takes_it() -> None:
    uri = picture()
    assert len(uri) < 20_000
    assert Outcome({"accuracy": 1.0}, pictures={"fits": uri}).to_json()["pictures"] == {"fits": uri}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="at least one curve"):
        lines({}, x_label="x", y_label="y")
    with pytest.raises(UserError, match="curve a: given 2 and 1 values"):
        lines({"a": ([0, 1], [0])}, x_label="x", y_label="y")
    with pytest.raises(UserError, match="curve a: given NaN or infinite values"):
        lines({"a": ([0, 1], [0, np.nan])}, x_label="x", y_label="y")
