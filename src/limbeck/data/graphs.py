"""Graphs with categorical labels on nodes and edges: in memory, as batches, and to and from torch-geometric.

A label is an integer id. Id 0 is kept for what was never seen; a :class:`LabelTable` gives every distinct tuple of
attributes (the element and charge of an atom, say) an id of its own and turns ids back into tuples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.data.split import Split
from limbeck.errors import UserError, require

Attributes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """One labelled graph.

    Attributes:
        nodes: label id of every node, int64 ``[n]``.
        edges: int64 ``[2, e]``, source and target: messages flow from the first row to the second. An undirected edge
            stands there twice.
        edge_labels: label id of every edge, int64 ``[e]``.
        pool: how much each node counts when the graph is pooled, float ``[n]``; ``None``: every node counts once. Roots
            of a forest of computation trees have 1 and all other nodes 0.
    """

    nodes: Tensor
    edges: Tensor
    edge_labels: Tensor
    pool: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.nodes)
        if self.edges.shape != (2, len(self.edge_labels)):
            raise UserError(
                "graph edges", str(tuple(self.edges.shape)), f"[2, {len(self.edge_labels)}], as edge_labels"
            )
        if self.edges.numel() and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < count:
            wrong = int(self.edges.min() if int(self.edges.min()) < 0 else self.edges.max())
            raise UserError("graph edges", f"node {wrong}", f"nodes 0 to {count - 1}")
        if self.pool is not None and self.pool.shape != self.nodes.shape:
            raise UserError("graph pool", str(tuple(self.pool.shape)), f"one number per node, [{count}]")

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.nodes)


def collate(graphs: Sequence[Graph]) -> dict[str, Tensor]:
    """A batch as one graph of disjoint parts: the keyword arguments of ``models.graphs.GraphNetwork``.

    Returns:
        ``nodes``, ``edges``, ``edge_labels`` of all graphs one after another, ``pool`` float ``[N]``, and ``offsets``
        int64 ``[B + 1]``: graph ``b`` owns the nodes ``offsets[b]`` to ``offsets[b + 1] - 1``.
    """
    sizes = torch.tensor([len(graph) for graph in graphs])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    pools = [torch.ones(len(graph)) if graph.pool is None else graph.pool for graph in graphs]
    return {
        "nodes": torch.cat([graph.nodes for graph in graphs]),
        "edges": torch.cat([graph.edges + start for graph, start in zip(graphs, offsets.tolist())], dim=1),
        "edge_labels": torch.cat([graph.edge_labels for graph in graphs]),
        "pool": torch.cat(pools),
        "offsets": offsets,
    }


def undirected(graph: Graph) -> bool:
    """Whether every edge also stands there the other way round with the same label."""
    forth = sorted(zip(*graph.edges.tolist(), graph.edge_labels.tolist()))
    back = sorted(zip(*graph.edges.flip(0).tolist(), graph.edge_labels.tolist()))
    return forth == back and not bool((graph.edges[0] == graph.edges[1]).any())


def graphs_of(split: Split) -> list[Graph]:
    """The samples of a split of graphs.

    Raises:
        UserError: they are something else.
    """
    found = [one for one in split.input if isinstance(one, Graph)]
    if len(found) != len(split):
        raise UserError("samples", type(split.input).__name__, "graphs")
    return found


class LabelTable:
    """Tuples of categorical attributes as ids 1, 2, 3, ...; 0 stands for a tuple that the table does not have.

    Args:
        rows: the tuples; each distinct one gets an id, in sorted order, so that the order of the data does not matter.
    """

    def __init__(self, rows: Iterable[Attributes]) -> None:
        self.attributes = tuple(sorted(set(rows)))
        self._ids = {row: position + 1 for position, row in enumerate(self.attributes)}

    def __len__(self) -> int:
        """Number of known tuples; ids reach from 0 to this."""
        return len(self.attributes)

    def encode(self, rows: Iterable[Attributes]) -> Tensor:
        """Ids of ``rows``, int64."""
        return torch.tensor([self._ids.get(row, 0) for row in rows], dtype=torch.int64)

    def decode(self, ids: Tensor) -> list[Attributes]:
        """The tuples of ``ids``.

        Raises:
            UserError: id 0 stands for no tuple.
        """
        for number in ids.tolist():
            if not 1 <= number <= len(self):
                raise UserError("label id", number, f"1 to {len(self)}: 0 is what the table does not have")
        return [self.attributes[number - 1] for number in ids.tolist()]


def categorical(values: Tensor | None, count: int, name: str) -> list[Attributes]:
    """Rows of categorical attributes as tuples; of a missing tensor ``count`` empty tuples.

    Raises:
        UserError: values that are not whole numbers. Continuous attributes have to be discretised first (cut into
            bins), since two nodes share a label only if they are equal.
    """
    if values is None:
        return [()] * count
    if len(values) != count:
        raise UserError(name, f"{len(values)} rows", f"{count} rows")
    if values.is_floating_point() and not torch.equal(values, values.round()):
        raise UserError(name, "continuous values", "categories as whole numbers", "cut them into bins first")
    return [tuple(row) for row in values.long().reshape(count, -1).tolist()]


def from_pyg(data: Any, nodes: LabelTable, edges: LabelTable) -> Graph:
    """The graph of a ``torch_geometric.data.Data``: ``x``, ``edge_index``, ``edge_attr``, ``root_mask`` if any."""
    rows = categorical(data.x, data.num_nodes, "x")
    edge_rows = categorical(data.edge_attr, data.num_edges, "edge_attr")
    mask = getattr(data, "root_weight", getattr(data, "root_mask", None))
    index = torch.zeros(2, 0, dtype=torch.int64) if data.edge_index is None else data.edge_index
    return Graph(nodes.encode(rows), index, edges.encode(edge_rows), None if mask is None else mask.float())


def tables_of_pyg(data: Iterable[Any]) -> tuple[LabelTable, LabelTable]:
    """The label tables of nodes and edges of the training graphs."""
    kept = list(data)
    nodes = (row for one in kept for row in categorical(one.x, one.num_nodes, "x"))
    edges = (row for one in kept for row in categorical(one.edge_attr, one.num_edges, "edge_attr"))
    return LabelTable(nodes), LabelTable(edges)


def to_pyg(graph: Graph, nodes: LabelTable, edges: LabelTable, **fields: Any) -> Any:
    """A ``torch_geometric.data.Data`` with the attributes of the tables and further ``fields`` such as ``y``.

    Where the graph says what counts in pooling, ``root_mask`` (bool) says it too, and ``root_weight`` (float) how much
    if that is not 1.
    """
    kind = require("torch_geometric.data", "graphs").Data
    if graph.pool is not None:
        fields["root_mask"] = graph.pool > 0
        if not torch.equal(graph.pool, fields["root_mask"].float()):
            fields["root_weight"] = graph.pool
    x = torch.tensor(nodes.decode(graph.nodes), dtype=torch.int64).reshape(len(graph), -1)
    attributes = edges.decode(graph.edge_labels)
    if edges.attributes != ((),):
        fields["edge_attr"] = torch.tensor(attributes, dtype=torch.int64).reshape(len(attributes), -1)
    return kind(x=x, edge_index=graph.edges, num_nodes=len(graph), **fields)


def relabelled(graph: Graph, order: Tensor) -> Graph:
    """The same graph with its nodes in another order: node ``order[i]`` becomes node ``i``."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    pool = None if graph.pool is None else graph.pool[order]
    return replace(graph, nodes=graph.nodes[order], edges=place[graph.edges], pool=pool)
