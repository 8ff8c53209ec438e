"""Pictures that experiments draw: what is in them, how small they are, and what is refused."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import UserError
from limbeck.experiment import Outcome, pictures


def opened(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


def test_a_map_is_dark_for_little_bright_for_much_and_blank_for_nothing_known() -> None:
    drawn = opened(pictures.heat_map(np.array([[0.0, 50.0], [100.0, np.nan]]), enlarge=3))
    assert drawn.size == (6, 6)
    none, half, much, blank = (drawn.getpixel(place) for place in ((1, 1), (4, 1), (1, 4), (4, 4)))
    assert sum(none) < sum(half) < sum(much)
    assert blank == (226, 222, 212)


def test_maps_can_share_a_scale_and_be_logarithmic() -> None:
    values = np.array([[1.0, 10.0]])
    alone, shared = opened(pictures.heat_map(values)), opened(pictures.heat_map(values, top=1000.0))
    assert sum(shared.getpixel((4, 0))) < sum(alone.getpixel((4, 0)))
    logarithmic = opened(pictures.heat_map(values, top=1000.0, logarithmic=True))
    assert sum(logarithmic.getpixel((4, 0))) > sum(shared.getpixel((4, 0)))
    assert len(set(opened(pictures.heat_map(np.zeros((2, 2)))).getdata())) == 1


def test_a_scatter_is_small_and_drawn() -> None:
    points = np.arange(1, 200)
    uri = pictures.scatter(
        {"a": (points, 1 / points)}, x_label="n", y_label="b", logarithmic=True, lines={"l": ([1, 9], [1, 9])}
    )
    assert len(uri) < 12_000
    assert len(set(opened(uri).getdata())) > 3


def test_colour_images_keep_their_colours() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 0] = (200, 30, 30)
    assert opened(pictures.image(pixels, enlarge=2)).getpixel((1, 1)) == (200, 30, 30)
    with pytest.raises(UserError, match="pixels"):
        pictures.image(np.zeros((2, 2)))


def test_an_outcome_takes_images_and_nothing_that_a_page_would_fetch() -> None:
    uri = pictures.heat_map(np.eye(2))
    assert Outcome({"a": 1.0}, pictures={"map": uri}).to_json()["pictures"] == {"map": uri}
    assert "pictures" not in Outcome({"a": 1.0}).to_json()
    for wrong in ("https://example.org/a.png", 'data:image/png;base64,AA" onload="x', "data:text/html;base64,AAAA"):
        with pytest.raises(UserError, match="pictures"):
            Outcome({"a": 1.0}, pictures={"map": wrong}).to_json()
