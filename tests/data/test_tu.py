"""The text format of TUDataset, from written files and from the package that holds MUTAG and Cuneiform."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.data.artefacts import fetch
from limbeck.data.graphs import undirected
from limbeck.data.tu import read_tu
from limbeck.errors import UserError

FILES = {
    "A": "1, 2\n2, 1\n4, 3\n3, 4\n",
    "graph_indicator": "1\n1\n2\n2\n2\n",
    "graph_labels": "1\n-1\n",
    "node_labels": "0, 3\n1, 3\n0, 3\n0, 3\n1, 0\n",
    "edge_labels": "0\n0\n2\n2\n",
}


def write(folder: Path, **changes: str) -> Path:
    for kind, text in {**FILES, **changes}.items():
        (folder / f"T_{kind}.txt").write_text(text)
    return folder


def test_lines_become_graphs(tmp_path: Path) -> None:
    found = read_tu(write(tmp_path), "T")
    assert found.target.tolist() == [1, 0]
    assert [graph.nodes.tolist() for graph in found.graphs] == [[1, 3], [1, 1, 2]]
    assert found.graphs[1].edges.tolist() == [[1, 0], [0, 1]]
    assert found.graphs[1].edge_labels.tolist() == [2, 2]
    assert found.node_table.attributes == ((0, 3), (1, 0), (1, 3))


def test_label_files_are_optional(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "T_edge_labels.txt").unlink()
    assert read_tu(tmp_path, "T").graphs[0].edge_labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"A": "1, 2\n2, 1\n2, 3\n3, 2\n"}, "an edge from graph 1 to 2"),
        ({"node_labels": "0\n"}, "given 1 lines; allowed: 5 lines"),
        ({"graph_indicator": "1\n1\n1\n1\n1\n"}, "given 1 graphs; allowed: graphs 1 to 2"),
        ({"graph_labels": "a\nb\n"}, "whole numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_tu(write(tmp_path, **changes), "T")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="T_A.txt"):
        read_tu(tmp_path, "T")


def test_the_packaged_sets_are_whole() -> None:
    mutag = read_tu(fetch("grakel") / "MUTAG", "MUTAG")
    assert mutag.target.bincount().tolist() == [63, 125]
    assert sum(len(graph) for graph in mutag.graphs) == 3371
    assert (len(mutag.node_table), len(mutag.edge_table)) == (7, 4)
    assert all(undirected(graph) for graph in mutag.graphs)
    signs = read_tu(fetch("grakel") / "Cuneiform", "Cuneiform")
    assert len(signs.graphs) == 267
    assert signs.target.bincount().min() == 8
    assert int(signs.target.max()) == 29
