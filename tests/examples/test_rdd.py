"""The example of rdd runs as it stands."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rdd.py"


def test_the_example_pays_bonuses_to_a_plain_loop() -> None:
    found = runpy.run_path(str(EXAMPLE))["main"](steps=25)
    assert found["visits"] == 15 * 4, "ten steps of warm-up, then four visits a step"
    assert found["bonus"] > 0
    assert math.isfinite(found["paid"])
