"""The graph testbed: folds, networks, gate, and the generated motifs with their truth."""

from __future__ import annotations

import torch

from limbeck.data.computation_trees import ComputationTrees
from limbeck.testbeds import load
from limbeck.testbeds.motif_graphs import TRUE_HOPS, motif_graphs, true_trees
from limbeck.testbeds.tu_graphs import TUGraphs


def bed(regime: str = "plain") -> TUGraphs:
    made = load(f"tu_graphs:{regime}", "smoke")
    assert isinstance(made, TUGraphs)
    return made


def test_ten_folds_cover_every_graph_once_and_the_parts_are_disjoint() -> None:
    made, tested = bed(), []
    for seed in range(10):
        splits = made.splits(seed)
        parts = [set(part.id.tolist()) for part in (splits.train, splits.validation, splits.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 188
        assert set(splits.test.labels.tolist()) == {0, 1}
        tested += splits.test.id.tolist()
    assert sorted(tested) == list(range(188))


def test_folds_are_stratified_and_dealt_out_anew_every_ten_seeds() -> None:
    made = bed("cuneiform")
    counts = made.splits(3).train.labels.bincount()
    assert int(counts.min()) >= 5
    assert int(counts.max()) <= 8
    assert made.splits(0).test.id.tolist() != made.splits(10).test.id.tolist()
    assert made.splits(0).test.id.tolist() == bed("cuneiform").splits(0).test.id.tolist()


def test_networks_teacher_and_gate_work_at_smoke_size() -> None:
    made = bed("motif")
    split = made.splits(0).test
    for make in made.network_makers().values():
        assert 0 <= made.evaluate(make(), split)["auc"] <= 1
    assert not any(parameter.requires_grad for parameter in made.teacher().parameters())
    assert made.gate().passed
    assert torch.equal(made.student(1).head.weight, made.student(1).head.weight)


def test_the_hashes_name_what_the_graphs_are_made_of() -> None:
    assert set(bed().data_hashes()) == {"grakel"}
    assert bed("motif").data_hashes() == bed("motif").data_hashes()


def test_motif_graphs_are_their_seed_and_their_classes_differ_in_the_motif_alone() -> None:
    graphs, target = motif_graphs(60, 1)
    again, _ = motif_graphs(60, 1)
    assert all(torch.equal(one.edges, other.edges) for one, other in zip(graphs, again, strict=True))
    assert target.tolist() == [0, 1] * 30
    houses, rings = ([len(g) for g, y in zip(graphs, target.tolist()) if y == label] for label in (0, 1))
    assert abs(sum(houses) - sum(rings)) < 0.15 * sum(rings)


def test_every_graph_holds_the_trees_that_are_said_to_be_true() -> None:
    graphs, target = motif_graphs(60, 2)
    trees = ComputationTrees(TRUE_HOPS)
    truth = true_trees(TRUE_HOPS)
    assert [len(one) for one in truth] == [2, 1]
    assert not truth[0] & truth[1]
    for graph, label in zip(graphs, target.tolist(), strict=True):
        assert truth[label] <= {trees.canonical(tree) for tree in trees.roots(graph)}
