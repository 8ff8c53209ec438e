from __future__ import annotations

from limbeck.cache.frontier import Point
from limbeck.report.cache_plots import frontier, unbeaten

POINTS = [
    Point("small", 30, 0.7, 0.8, 12),
    Point("good", 80, 0.3, 0.9, 50),
    Point("plain", 130, 0.5, 0.86, 32),
    Point("large", 900, 0.001, 1.0, 1000),
]


def test_every_codec_is_a_point_with_its_numbers_and_the_run_s_is_stressed() -> None:
    drawn = frontier(POINTS, chosen="plain")
    assert drawn is not None
    for point in POINTS:
        assert f"{point.codec}: {point.bytes:.0f} bytes" in drawn.alt
        assert point.codec in drawn.wide
    assert drawn.wide.startswith("<svg")
    assert "plain" in drawn.narrow.partition("</desc>")[2] or "plain</text>" in drawn.narrow
    assert drawn.wide.count("bytes per token") >= 1


def test_beaten_codecs_are_off_the_line() -> None:
    assert [point.codec for point in unbeaten(POINTS)] == ["small", "good", "large"]
    assert unbeaten([]) == []


def test_one_codec_is_no_frontier() -> None:
    assert frontier(POINTS[:1]) is None
    assert frontier([*POINTS[:1], Point("exact", 100, 0.0, 1, 10)]) is None
