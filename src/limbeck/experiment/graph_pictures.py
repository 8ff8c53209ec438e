"""Rooted trees as small SVG data URIs, for the outcomes of experiments on graphs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from limbeck.data.computation_trees import ComputationTrees

_INK = "#44423d"
# One per label, readable without colour vision; the label stands inside the node anyway.
_FILL = ("#d9d5ca", "#8ecae6", "#f4a261", "#a7c957", "#e5989b", "#b8a1d9", "#ffd166", "#83c5be")
_STEP, _LEVEL, _NODE, _TITLE = 19, 30, 7.5, 17


def draw_forests(
    rows: Mapping[str, Sequence[tuple[str, Sequence[int]]]],
    trees: ComputationTrees,
    names: Mapping[int, str],
    edge_names: Mapping[int, str] | None = None,
    *,
    width: int = 420,
) -> str:
    """Sets of trees, one line per set and one block per class.

    Args:
        rows: title of a block -> its sets, each with a text (its support) and tree ids.
        trees: where the ids come from.
        names: label id -> a short text drawn in the node.
        edge_names: edge label id -> a text drawn beside the edge; nothing for labels that are not in it.
        width: of the picture; trees that do not fit go to the next line.
    """
    ids_of_all = [tree for sets in rows.values() for _, ids in sets for tree in ids]
    parts = [_node_shapes(names, _labels(trees, ids_of_all))]
    y = 4.0
    for title, sets in rows.items():
        parts.append(f'<text x="4" y="{y + 12}" font-weight="bold">{escape(title)}</text>')
        y += _TITLE + 3
        for text, ids in sets:
            parts.append(f'<text x="4" y="{y + 11}" fill="#6f6b62">{escape(text)}</text>')
            x, tall, y = 10.0, 0.0, y + _TITLE
            for tree in ids:
                drawn, wide, high = _tree(trees, tree, names, edge_names or {})
                if x + wide > width - 4 and x > 10:
                    x, y, tall = 10.0, y + tall + 6, 0.0
                parts.append(f'<g transform="translate({x:.0f} {y:.0f})">{drawn}</g>')
                x, tall = x + wide + 14, max(tall, high)
            y += tall + 6
    return _svg_uri("".join(parts), width, y + 2)


def _svg_uri(body: str, width: float, height: float) -> str:
    """An SVG picture on paper white as a data URI."""
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="10.5" fill="{_INK}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _tree(
    trees: ComputationTrees, tree: int, names: Mapping[int, str], edge_names: Mapping[int, str]
) -> tuple[str, float, float]:
    """A tree from its root down: its marks, width and height."""
    lines: list[str] = []
    marks: list[str] = []
    nodes: list[str] = []
    deepest = 0

    def place(current: int, left: float, level: int) -> tuple[float, float]:
        """Draws a subtree with its leaves from ``left`` on; where its root stands, and where the next leaf goes."""
        nonlocal deepest
        deepest = max(deepest, level)
        y, at, kids = _NODE + 1 + level * _LEVEL, left, []
        for edge, kid in trees.children(current):
            x, at = place(kid, at, level + 1)
            kids.append((x, edge))
        own = (kids[0][0] + kids[-1][0]) / 2 if kids else left + _STEP / 2
        for x, edge in kids:
            lines.append(f"M{own:.0f} {y:.0f}L{x:.0f} {y + _LEVEL:.0f}")
            if edge in edge_names:
                place_of = f'x="{(own + x) / 2 + 3:.0f}" y="{y + _LEVEL / 2 + 3:.0f}"'
                marks.append(f"<text {place_of}>{escape(edge_names[edge])}</text>")
        nodes.append(f'<use href="#n{trees.label(current)}" x="{own:.0f}" y="{y:.0f}"/>')
        return own, max(at, left + _STEP)

    root, right = place(tree, 0.0, 0)
    # A ring marks the root, whose embedding is pooled.
    ring = f'<circle cx="{root:.0f}" cy="{_NODE + 1:.0f}" r="{_NODE}" fill="none" stroke="{_INK}" stroke-width="2"/>'
    drawn = f'<path d="{"".join(lines)}" stroke="{_INK}"/>{"".join(marks)}{"".join(nodes)}{ring}'
    return drawn, right, 2 * _NODE + 2 + deepest * _LEVEL


def _node_shapes(names: Mapping[int, str], labels: set[int]) -> str:
    """One drawing per label, to be used wherever a node has it."""
    shapes = []
    for label in sorted(labels):
        circle = f'<circle r="{_NODE}" fill="{_FILL[label % len(_FILL)]}" stroke="{_INK}" stroke-width=".7"/>'
        text = f'<text y="3" text-anchor="middle" font-size="8">{escape(names.get(label, str(label)))}</text>'
        shapes.append(f'<g id="n{label}">{circle}{text}</g>')
    return f"<defs>{''.join(shapes)}</defs>"


def _labels(trees: ComputationTrees, ids: Sequence[int]) -> set[int]:
    found, queue, seen = set[int](), list(ids), set[int]()
    while queue:
        tree = queue.pop()
        if tree not in seen:
            seen.add(tree)
            found.add(trees.label(tree))
            queue += [kid for _, kid in trees.children(tree)]
    return found
