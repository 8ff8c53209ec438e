"""Computation trees: isomorphism, walks that come back, caps, forests, frequencies."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from limbeck.data.computation_trees import ComputationTrees, counted_once, coverage, forest, tree_histograms
from limbeck.data.graphs import Graph, collate, relabelled
from limbeck.errors import UserError
from limbeck.models.graphs import GraphNetwork
from tests.data.graph_samples import random_graph


def path(labels: list[int]) -> Graph:
    """Nodes in a row."""
    pairs = [(i, i + 1) for i in range(len(labels) - 1)]
    index = torch.tensor([*pairs, *((b, a) for a, b in pairs)]).T
    return Graph(torch.tensor(labels), index, torch.ones(2 * len(pairs), dtype=torch.int64))


def nested(graph: Graph, node: int, hops: int) -> object:
    """The tree by plain recursion, an independent reference: label and the sorted marked children."""
    if hops == 0:
        return (int(graph.nodes[node]), ())
    arriving = (graph.edges[1] == node).nonzero().squeeze(-1).tolist()
    below = [(int(graph.edge_labels[e]), nested(graph, int(graph.edges[0, e]), hops - 1)) for e in arriving]
    return (int(graph.nodes[node]), tuple(sorted(below, key=repr)))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_ids_agree_exactly_when_trees_are_isomorphic(hops: int) -> None:
    trees, pairs = ComputationTrees(hops), []
    for seed in range(6):
        graph = random_graph(seed, nodes=7, labels=2, edge_labels=2)
        pairs += [(tree, nested(graph, node, hops)) for node, tree in enumerate(trees.roots(graph))]
    for a, one in pairs:
        for b, other in pairs:
            assert (a == b) == (one == other)
            assert (trees.canonical(a) == trees.canonical(b)) == (one == other)


def test_the_parent_is_a_neighbour_again() -> None:
    trees = ComputationTrees(2)
    ends = trees.roots(path([1, 2, 3]))
    # From node 0: its only neighbour, whose neighbours are node 0 itself and node 2.
    assert trees.canonical(ends[0]) == "1[1:2[1:1[],1:3[]]]"
    assert trees.size(ends[0]) == 4


def test_ids_do_not_depend_on_the_order_of_nodes_and_edges() -> None:
    generator = random.Random(0)
    for seed in range(5):
        graph = random_graph(seed)
        order = torch.tensor(generator.sample(range(len(graph)), len(graph)))
        shuffled = torch.tensor(generator.sample(range(len(graph.edge_labels)), len(graph.edge_labels)))
        moved = relabelled(graph, order)
        moved = Graph(moved.nodes, moved.edges[:, shuffled], moved.edge_labels[shuffled])
        trees = ComputationTrees(3)
        roots = torch.tensor(trees.roots(graph))
        assert torch.equal(torch.tensor(trees.roots(moved)), roots[order])


def test_labels_of_two_digits_do_not_collide() -> None:
    """A released canonical form gives root 29 with a child 0 the code of root 1 with a child 10."""
    trees = ComputationTrees(1)
    one, other = trees.roots(path([29, 0]))[0], trees.roots(path([1, 10]))[0]
    assert one != other
    assert trees.canonical(one) != trees.canonical(other)
    assert trees.canonical(trees.roots(path([1, 11]))[0]) != trees.canonical(trees.roots(path([11, 1]))[0])


def test_edge_labels_tell_trees_apart() -> None:
    plain = path([1, 2])
    other = Graph(plain.nodes, plain.edges, 2 * plain.edge_labels)
    trees = ComputationTrees(1)
    assert trees.roots(plain)[0] != trees.roots(other)[0]


def test_a_written_tree_has_its_own_id_and_edges_to_its_parents() -> None:
    trees = ComputationTrees(3)
    for tree in set(trees.roots(random_graph(3, nodes=6))):
        written = trees.expand(tree)
        assert len(written) == trees.size(tree)
        assert trees.roots(written)[0] == tree
        assert written.pool is not None
        assert written.pool.tolist() == [1.0] + [0.0] * (len(written) - 1)
        assert bool((written.edges[0] > written.edges[1]).all()), "child to parent, and nothing back"
        sources = written.edges[0].tolist()
        assert len(sources) == len(set(sources)) == len(written) - 1


def test_a_hub_is_refused_by_name_before_it_is_written_out() -> None:
    leaves = 200
    index = torch.tensor([[node, 0] for node in range(1, leaves + 1)]).T
    star = Graph(torch.ones(leaves + 1).long(), torch.cat([index, index.flip(0)], 1), torch.ones(2 * leaves).long())
    with pytest.raises(
        UserError, match=r"node \d+ of a graph with 201 nodes has .* at most 5,000 nodes; use fewer hops"
    ):
        ComputationTrees(4).roots(star)
    trees = ComputationTrees(12, largest=10**30)
    assert trees.size(trees.roots(star)[0]) > 10**12, "sizes are known without writing anything out"


def test_a_forest_counts_only_roots() -> None:
    trees = ComputationTrees(1)
    roots = trees.roots(path([1, 2, 3]))
    made = forest(trees, roots[:2], [1.0, 2.5])
    assert made.nodes.tolist() == [1, 2, 2, 1, 3]
    assert made.edges.tolist() == [[1, 3, 4], [0, 2, 2]]
    assert made.pool is not None
    assert made.pool.tolist() == [1.0, 0.0, 2.5, 0.0, 0.0]


def test_histograms_count_all_levels() -> None:
    graphs = [random_graph(seed, nodes=6) for seed in range(3)]
    features = tree_histograms(graphs, 2)
    assert features.sum(dim=1).tolist() == [18.0] * 3
    same = tree_histograms([graphs[0], relabelled(graphs[0], torch.arange(5, -1, -1))], 2)
    assert torch.equal(same[0], same[1])


def test_coverage_is_the_share_of_nodes() -> None:
    assert coverage(Counter({1: 8, 2: 1, 3: 1, 4: 0, 5: 0}), (0.2, 0.4, 1.0)) == [0.8, 0.9, 1.0]


@pytest.mark.parametrize("kind", ["gin", "gat"])
def test_a_graph_whose_trees_count_once_pools_to_the_forest_of_its_set(kind: str) -> None:
    torch.manual_seed(0)
    model, trees = GraphNetwork(kind, 3, 2, 2, width=8).eval(), ComputationTrees(2)
    graph = path([1, 2, 1, 2, 1])
    once, roots = counted_once(graph, trees), trees.roots(graph)
    assert len(set(roots)) == 3
    real, whole, sets = (model(**collate([one])) for one in (once, graph, forest(trees, sorted(set(roots)))))
    torch.testing.assert_close(real, sets, atol=1e-5, rtol=1e-5)
    assert float((whole - sets).abs().max()) > 1e-3
