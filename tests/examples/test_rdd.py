"""The example of rdd runs as it stands."""

from __future__ import annotations

import math

from tests.scripts import load_script


def test_the_example_pays_bonuses_to_a_plain_loop() -> None:
    found = load_script("examples/rdd.py").main(steps=25)
    assert found["visits"] == 15 * 4, "ten steps of warm-up, then four visits a step"
    assert found["bonus"] > 0
    assert math.isfinite(found["paid"])
