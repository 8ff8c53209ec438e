"""Reference networks on graphs: invariance, unknown labels, roots of trees, no part of one graph in another."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.computation_trees import ComputationTrees, forest
from limbeck.data.graphs import Graph, collate, relabelled
from limbeck.errors import UserError
from limbeck.models.graphs import LAYERS, GraphNetwork
from tests.data.graph_samples import random_graph

GRAPHS = [random_graph(seed, nodes=5 + seed) for seed in range(4)]


def network(kind: str, **options: object) -> GraphNetwork:
    torch.manual_seed(0)
    return GraphNetwork(kind, 3, 2, 4, width=16, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch_gives_what_each_graph_gives(kind: str) -> None:
    model = network(kind)
    together = model(**collate(GRAPHS))
    apart = torch.cat([model(**collate([graph])) for graph in GRAPHS])
    torch.testing.assert_close(together, apart)
    assert together.shape == (4, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_order_of_nodes_does_not_matter(kind: str) -> None:
    model, graph = network(kind), GRAPHS[2]
    moved = relabelled(graph, torch.randperm(len(graph), generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(model(**collate([moved])), model(**collate([graph])))


def test_unseen_labels_are_the_unknown_one() -> None:
    model, graph = network("gin"), GRAPHS[1]
    beyond = Graph(graph.nodes.clone(), graph.edges, graph.edge_labels)
    unknown = Graph(graph.nodes.clone(), graph.edges, graph.edge_labels)
    beyond.nodes[0], unknown.nodes[0] = 99, 0
    assert torch.equal(model(**collate([beyond])), model(**collate([unknown])))
    assert not torch.equal(model(**collate([beyond])), model(**collate([graph])))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["gin", "gat"])
def test_the_root_of_a_tree_has_the_embedding_of_its_node(kind: str, layers: int) -> None:
    model, graph, trees = network(kind, layers=layers), GRAPHS[3], ComputationTrees(layers)
    roots = trees.roots(graph)
    nodes = model.embed(graph.nodes, graph.edges, graph.edge_labels)
    for node, tree in enumerate(roots):
        written = trees.expand(tree)
        embedded = model.embed(written.nodes, written.edges, written.edge_labels)
        torch.testing.assert_close(embedded[0], nodes[node], atol=1e-5, rtol=1e-5)


def test_gcn_needs_one_hop_more_for_the_degrees_of_the_leaves() -> None:
    model, graph = network("gcn", layers=2), GRAPHS[3]
    nodes = model.embed(graph.nodes, graph.edges, graph.edge_labels)

    def worst(hops: int) -> float:
        trees = ComputationTrees(hops)
        written = [trees.expand(tree) for tree in trees.roots(graph)]
        roots = [model.embed(one.nodes, one.edges, one.edge_labels)[0] for one in written]
        return float((torch.stack(roots) - nodes).abs().max())

    assert worst(3) < 1e-5
    assert worst(2) > 1e-3


def test_undirected_tree_edges_would_break_the_equality() -> None:
    model, graph, trees = network("gin"), GRAPHS[3], ComputationTrees(2)
    nodes, tree = model.embed(graph.nodes, graph.edges, graph.edge_labels), trees.roots(graph)[0]
    one = trees.expand(tree)
    both = torch.cat([one.edges, one.edges.flip(0)], dim=1)
    back = model.embed(one.nodes, both, torch.cat([one.edge_labels, one.edge_labels]))
    assert float((back[0] - nodes[0]).abs().max()) > 1e-3


def test_pooling_all_roots_of_a_graph_is_pooling_the_graph() -> None:
    model, graph, trees = network("gin"), GRAPHS[2], ComputationTrees(2)
    torch.testing.assert_close(
        model(**collate([forest(trees, trees.roots(graph))])), model(**collate([graph])), atol=1e-5, rtol=1e-5
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="graph network: given mlp; allowed: gin, gcn, gat"):
        GraphNetwork("mlp", 3, 2, 4)
    with pytest.raises(UserError, match="layers: given 0"):
        GraphNetwork("gin", 3, 2, 4, layers=0)
