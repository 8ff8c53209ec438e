"""Labelled graphs: batches, label tables, to and from torch-geometric."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.graphs import (
    Graph,
    LabelTable,
    categorical,
    collate,
    from_pyg,
    graphs_of,
    relabelled,
    tables_of_pyg,
    to_pyg,
    undirected,
)
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.errors import UserError
from tests.data.graph_samples import random_graph


def test_a_batch_is_one_graph_of_disjoint_parts() -> None:
    graphs = [random_graph(0, nodes=3), random_graph(1, nodes=1), random_graph(2, nodes=5)]
    batch = collate(graphs)
    assert batch["offsets"].tolist() == [0, 3, 4, 9]
    assert torch.equal(batch["nodes"][4:], graphs[2].nodes)
    count = len(graphs[0].edge_labels)
    assert torch.equal(batch["edges"][:, count:], graphs[2].edges + 4)
    assert batch["pool"].tolist() == [1.0] * 9


def test_a_loader_batches_graphs_and_resumes() -> None:
    graphs = [random_graph(seed, nodes=2 + seed) for seed in range(6)]
    split = Split(graphs, torch.arange(6), torch.arange(6))
    loader = TensorLoader(split, 2, collate=collate, seed=3)
    batch = next(iter(loader))
    sizes = batch["input"]["offsets"].diff().tolist()
    assert sizes == [2 + number for number in batch["id"].tolist()]
    assert [len(graph) for graph in split.subset([4, 0]).input] == [6, 2]


def test_wrong_graphs_are_refused() -> None:
    nodes, edge = torch.tensor([1, 2]), torch.tensor([[0], [2]])
    with pytest.raises(UserError, match="graph edges: given node 2; allowed: nodes 0 to 1"):
        Graph(nodes, edge, torch.tensor([1]))
    with pytest.raises(UserError, match="graph edges"):
        Graph(nodes, edge, torch.tensor([1, 1]))
    with pytest.raises(UserError, match="graph pool"):
        Graph(nodes, torch.tensor([[0], [1]]), torch.tensor([1]), torch.ones(3))


def test_undirected_wants_both_directions_with_one_label() -> None:
    graph = random_graph(5)
    assert undirected(graph)
    half = graph.edges[0] < graph.edges[1]
    assert not undirected(Graph(graph.nodes, graph.edges[:, half], graph.edge_labels[half]))
    other = graph.edge_labels.clone()
    other[0] = 9
    assert not undirected(Graph(graph.nodes, graph.edges, other))


def test_label_tables_do_not_depend_on_order_and_know_what_they_do_not_know() -> None:
    table = LabelTable([(6, 0), (1, 1), (6, 0)])
    assert table.encode([(1, 1), (6, 0), (7, 0)]).tolist() == [1, 2, 0]
    assert table.decode(torch.tensor([2, 1])) == [(6, 0), (1, 1)]
    assert LabelTable([(1, 1), (6, 0)]).attributes == table.attributes
    with pytest.raises(UserError, match="label id: given 0"):
        table.decode(torch.tensor([0]))


def test_continuous_attributes_must_be_binned_first() -> None:
    assert categorical(torch.tensor([[1.0, 2.0]]), 1, "x") == [(1, 2)]
    with pytest.raises(UserError, match="x: given continuous values; .*bins"):
        categorical(torch.tensor([[0.5]]), 1, "x")


def test_torch_geometric_graphs_come_back_as_they_were() -> None:
    from torch_geometric.data import Data

    x = torch.tensor([[6, 0], [7, 1], [6, 0]])
    index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    data = Data(x=x, edge_index=index, edge_attr=torch.tensor([[1], [1], [2], [2]]), y=torch.tensor([1]))
    nodes, edges = tables_of_pyg([data])
    graph = from_pyg(data, nodes, edges)
    assert graph.nodes.tolist() == [1, 2, 1]
    back = to_pyg(Graph(graph.nodes, graph.edges, graph.edge_labels, torch.tensor([1.0, 0.0, 0.0])), nodes, edges, y=1)
    assert torch.equal(back.x, x)
    assert torch.equal(back.edge_attr, data.edge_attr)
    assert back.root_mask.tolist() == [True, False, False]
    assert from_pyg(back, nodes, edges).pool is not None
    bare = Data(x=x[:1], edge_index=None, num_nodes=1)
    assert from_pyg(bare, nodes, LabelTable([()])).edges.shape == (2, 0)


def test_a_graph_in_another_order_is_the_same_graph() -> None:
    graph, order = random_graph(1), torch.tensor([3, 1, 0, 2, 8, 7, 6, 5, 4])
    moved = relabelled(graph, order)
    back = relabelled(moved, order.argsort())
    assert torch.equal(back.nodes, graph.nodes)
    assert torch.equal(back.edges, graph.edges)
    assert torch.equal(moved.nodes, graph.nodes[order])


def test_a_split_gives_its_graphs_and_nothing_else() -> None:
    graphs = [random_graph(seed) for seed in range(2)]
    assert graphs_of(Split(graphs, None, torch.arange(2))) == graphs
    with pytest.raises(UserError, match="samples: given Tensor; allowed: graphs"):
        graphs_of(Split(torch.ones(2, 3), None, torch.arange(2)))
