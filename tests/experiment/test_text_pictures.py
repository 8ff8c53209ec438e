"""Pictures of texts with their kept words."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

import pytest

from limbeck.errors import UserError
from limbeck.experiment.base import checked_picture
from limbeck.experiment.text_pictures import kept_words


def test_every_word_is_there_and_the_kept_ones_are_marked() -> None:
    words = ["keep", "<drop>", "keep", "it&"] * 20
    uri = kept_words([(words, [True, False, False, True] * 20), (["last"], [True])])
    assert checked_picture(uri) == uri
    root = ElementTree.fromstring(base64.b64decode(uri.partition(",")[2]))
    texts = [node for node in root.iter() if node.tag.endswith("text")]
    assert [node.text for node in texts] == [*words, "last"]
    assert sum(node.tag.endswith("path") for node in root.iter()) == 41
    width = float(root.attrib["width"])
    assert all(float(node.attrib["x"]) + float(node.attrib["textLength"]) <= width for node in texts)
    assert max(float(node.attrib["y"]) for node in texts) < float(root.attrib["height"])


def test_bad_input() -> None:
    with pytest.raises(UserError, match="keep"):
        kept_words([(["a"], [])])
    with pytest.raises(UserError, match="texts"):
        kept_words([])
