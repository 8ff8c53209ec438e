"""Drawings of trees: every node once, labels escaped, small."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

from limbeck.data.computation_trees import ComputationTrees
from limbeck.experiment.base import checked_picture
from limbeck.experiment.graph_pictures import draw_forests
from tests.data.graph_samples import random_graph

SVG = "{http://www.w3.org/2000/svg}"


def drawn(names: dict[int, str], width: int = 420) -> tuple[ElementTree.Element, list[int], ComputationTrees]:
    trees = ComputationTrees(2)
    ids = list(dict.fromkeys(trees.roots(random_graph(1, density=0.4))))[:4]
    uri = checked_picture(draw_forests({"class 0": [("support 3", ids)]}, trees, names, {2: "="}, width=width))
    assert len(uri) < 12_000
    return ElementTree.fromstring(base64.b64decode(uri.partition(",")[2])), ids, trees


def test_every_node_of_every_tree_is_drawn_once() -> None:
    picture, ids, trees = drawn({1: "C", 2: "N", 3: "O"})
    assert len(list(picture.iter(f"{SVG}use"))) == sum(trees.size(tree) for tree in ids)
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"class 0", "support 3", "C", "N", "O"} <= set(texts)
    marked = sum(trees.expand(tree).edge_labels.eq(2).sum() for tree in ids)
    assert texts.count("=") == marked


def test_texts_cannot_break_the_picture() -> None:
    picture, _, _ = drawn({1: "<b>&"})
    assert "<b>&" in [text.text for text in picture.iter(f"{SVG}text")]


def test_what_does_not_fit_goes_to_the_next_line() -> None:
    narrow, wide = (float(drawn({}, width)[0].attrib["height"]) for width in (150, 1500))
    assert narrow > wide
