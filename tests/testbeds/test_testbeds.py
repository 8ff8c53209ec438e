from __future__ import annotations

import pytest

from limbeck import testbeds
from limbeck.errors import UserError


@pytest.mark.parametrize("name", testbeds.TESTBEDS)
def test_every_testbed_loads_by_name_and_has_a_plain_regime(name: str) -> None:
    made = testbeds.load(name, size="smoke")
    assert made.reference == f"{name}:plain"
    for regime in testbeds.testbed_class(name).regimes:
        assert testbeds.load(f"{name}:{regime}").regime == regime


@pytest.mark.parametrize(
    ("reference", "size", "message"),
    [
        ("fashion", "smoke", "testbed: given fashion; allowed: .*fashion_mnist"),
        ("digits:many", "smoke", "regime of digits: given many; allowed: plain, few_labels"),
        ("digits", "huge", "size: given huge; allowed: full, smoke"),
    ],
)
def test_unknown_names_list_the_known_ones(reference: str, size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        testbeds.load(reference, size=size)  # type: ignore[arg-type]
