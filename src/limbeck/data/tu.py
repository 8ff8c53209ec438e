"""Graph sets in the text format of the TUDataset collection (Morris et al., arXiv:2007.08663).

    DS_A.txt               two node numbers a line, one per direction of an edge; numbers begin at 1
    DS_graph_indicator.txt the graph of every node
    DS_graph_labels.txt    the class of every graph
    DS_node_labels.txt     categories of every node, one or more a line (optional)
    DS_edge_labels.txt     categories of every line of DS_A (optional)

Continuous attributes (``DS_node_attributes.txt``) are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data.graphs import Attributes, Graph, LabelTable
from limbeck.errors import UserError


@dataclass(frozen=True)
class GraphSet:
    """Labelled graphs with their classes.

    Attributes:
        graphs: one per sample.
        target: classes 0, 1, ..., in the order of the file's sorted class numbers.
        node_table, edge_table: what the label ids mean.
    """

    graphs: list[Graph]
    target: Tensor
    node_table: LabelTable
    edge_table: LabelTable


def read_tu(folder: str | Path, name: str) -> GraphSet:
    """The set ``name`` in ``folder``. An edge that the file repeats counts once.

    Raises:
        UserError: a file is missing, or its lines do not fit the others.
    """
    path = Path(folder)
    edges = [(row[0] - 1, row[1] - 1) for row in _rows(path, name, "A")]
    owner = [row[0] for row in _rows(path, name, "graph_indicator")]
    classes = [row[0] for row in _rows(path, name, "graph_labels")]
    node_rows = _rows(path, name, "node_labels", len(owner))
    edge_rows = _rows(path, name, "edge_labels", len(edges))
    node_table, edge_table = LabelTable(node_rows), LabelTable(edge_rows)
    known = {number: position for position, number in enumerate(sorted(set(classes)))}
    numbers = sorted(set(owner))
    if numbers != list(range(1, len(classes) + 1)):
        raise UserError(f"{name}_graph_indicator", f"{len(numbers)} graphs", f"graphs 1 to {len(classes)}")
    members: list[list[int]] = [[] for _ in classes]
    for node, graph in enumerate(owner):
        members[graph - 1].append(node)
    place = {node: position for nodes in members for position, node in enumerate(nodes)}
    inside: list[dict[tuple[int, int], Attributes]] = [{} for _ in classes]
    for (source, target), row in zip(edges, edge_rows, strict=True):
        if owner[source] != owner[target]:
            raise UserError(
                f"{name}_A", f"an edge from graph {owner[source]} to {owner[target]}", "edges inside a graph"
            )
        inside[owner[source] - 1][place[source], place[target]] = row
    graphs = []
    for nodes, found in zip(members, inside, strict=True):
        index = torch.tensor(list(found), dtype=torch.int64).reshape(-1, 2).T.contiguous()
        labels = node_table.encode(node_rows[node] for node in nodes)
        graphs.append(Graph(labels, index, edge_table.encode(found.values())))
    return GraphSet(graphs, torch.tensor([known[number] for number in classes]), node_table, edge_table)


def _rows(folder: Path, name: str, kind: str, optional: int | None = None) -> list[Attributes]:
    file = folder / f"{name}_{kind}.txt"
    if not file.is_file():
        if optional is not None:
            return [()] * optional
        raise UserError("graph set", str(file), "a folder with the text files of TUDataset")
    try:
        rows = [tuple(int(part) for part in line.split(",")) for line in file.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(str(file), str(error), "whole numbers, separated by commas") from error
    if optional is not None and len(rows) != optional:
        raise UserError(str(file), f"{len(rows)} lines", f"{optional} lines")
    return rows
