"""Mirage: transactions, supports, thresholds, budget, filter, multisets, and the small experiments."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.condensation import DistilledSet, TooManyItemsets
from limbeck.data.computation_trees import ComputationTrees
from limbeck.data.graphs import Graph, collate
from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.experiment import Exact
from limbeck.experiment.condensation import packed
from limbeck.models.graphs import GraphNetwork
from limbeck.systems.graphs.mirage import experiment, properties
from limbeck.systems.graphs.mirage.budget import Shares
from limbeck.systems.graphs.mirage.method import Mirage
from limbeck.systems.registry import read_card
from limbeck.testbeds.motif_graphs import motif_graphs, true_trees
from tests.data.graph_samples import random_graph

GRAPHS, TARGET = motif_graphs(40, seed=3)


def path(labels: list[int]) -> Graph:
    pairs = [(i, i + 1) for i in range(len(labels) - 1)]
    index = torch.tensor([*pairs, *((b, a) for a, b in pairs)], dtype=torch.int64).reshape(-1, 2).T
    return Graph(torch.tensor(labels), index, torch.ones(2 * len(pairs), dtype=torch.int64))


def roots_of(graph: Graph, hops: int) -> list[str]:
    """Canonical texts of the trees that a forest pools."""
    trees = ComputationTrees(hops)
    assert graph.pool is not None
    return sorted(trees.canonical(tree) for tree, pool in zip(trees.roots(graph), graph.pool.tolist()) if pool)


def fits_alone(miner: Mirage, budget: int) -> int:
    """Bytes of the whole when every class takes what fits its equal share."""
    return miner.assemble(Shares(miner).within(budget // len(miner.transactions_))[1]).bytes


def test_supports_are_those_of_counting_graphs() -> None:
    miner = Mirage(1, thresholds={0: 16, 1: 16}, class_filter=False).fit(GRAPHS, TARGET)
    for label, mined in miner.itemsets_.items():
        held = [set(counts) for counts in miner.transactions_[label]]
        frequent = [tree for tree in set.union(*held) if sum(tree in one for one in held) >= 16]
        expected = {
            tuple(sorted(chosen)): support
            for size in range(1, len(frequent) + 1)
            for chosen in combinations(frequent, size)
            if (support := sum(set(chosen) <= one for one in held)) >= 16
        }
        assert mined == expected
        assert list(mined.values()) == sorted(mined.values(), reverse=True)


def test_a_set_becomes_the_forest_of_its_trees() -> None:
    miner = Mirage(2, thresholds={0: 15, 1: 15})
    made = miner.fit_transform(GRAPHS, TARGET)
    sets = [(label, one) for label, mined in miner.itemsets_.items() for one in mined]
    assert made.target.tolist() == [label for label, _ in sets]
    for graph, (_, itemset) in zip(made.samples, sets, strict=True):
        assert roots_of(graph, 2) == sorted(miner.trees_.canonical(tree) for tree in itemset)
        sources = graph.edges[0].tolist()
        assert len(sources) == len(set(sources)), "every node has one parent at most"
        assert len(graph) - len(sources) == len(itemset), "every tree has one root"
        # Roots are the nodes with incoming and without outgoing edges, as the released code finds them.
        found = set(graph.edges[1].tolist()) - set(sources)
        assert found == set((graph.pool > 0).nonzero().squeeze(-1).tolist())


@pytest.mark.parametrize("kind", ["gin", "gat"])
def test_a_distilled_root_has_the_embedding_of_a_real_node(kind: str) -> None:
    torch.manual_seed(0)
    model = GraphNetwork(kind, 3, 1, 2, width=16).eval()
    whole = collate(GRAPHS)
    nodes = model.embed(whole["nodes"], whole["edges"], whole["edge_labels"])
    for graph in Mirage(2, budget=500).fit_transform(GRAPHS, TARGET).samples[:8]:
        embedded = model.embed(graph.nodes, graph.edges, graph.edge_labels)[graph.pool > 0]
        assert float((embedded[:, None] - nodes).abs().amax(-1).amin(1).max()) < 1e-5


def test_the_class_filter_drops_what_two_classes_have() -> None:
    thresholds = {0: 4, 1: 4}
    every = Mirage(1, thresholds=thresholds, class_filter=False).fit(GRAPHS, TARGET).itemsets_
    kept = Mirage(1, thresholds=thresholds).fit(GRAPHS, TARGET).itemsets_
    both = set(every[0]) & set(every[1])
    assert both
    for label in (0, 1):
        assert set(kept[label]) == set(every[label]) - both


def test_weights_follow_support_inside_a_class_and_the_data_between_classes() -> None:
    graphs, target = GRAPHS[:30], TARGET[:30].clone()
    target[target == 1] = torch.tensor([1] * 15)
    uneven = torch.cat([torch.arange(30)[target == 0], torch.arange(30)[target == 1][:5]])
    miner = Mirage(1, thresholds={0: 12, 1: 4}, class_filter=False)
    made = miner.fit_transform([graphs[i] for i in uneven.tolist()], target[uneven])
    assert made.weight is not None
    weight, labels = made.weight.double(), made.target.long()
    assert float(weight[labels == 0].sum() / weight.sum()) == pytest.approx(0.75, abs=2e-3)
    supports = torch.tensor(list(miner.itemsets_[0].values())).double()
    torch.testing.assert_close(
        weight[labels == 0] / weight[labels == 0].sum(), supports / supports.sum(), atol=1e-3, rtol=1e-2
    )
    by_support = Mirage(1, thresholds={0: 12, 1: 4}, class_filter=False, class_shares="sets")
    drawn = by_support.fit_transform([graphs[i] for i in uneven.tolist()], target[uneven]).weight
    assert drawn is not None
    assert drawn.tolist() == [n for mined in by_support.itemsets_.values() for n in mined.values()]


@pytest.mark.parametrize("budget", [200, 500, 1500])
@pytest.mark.parametrize(
    "options", [{}, {"closed": True}, {"storage": "shared"}, {"multiset": True}, {"class_filter": False}]
)
def test_a_budget_is_kept_and_used(budget: int, options: dict[str, object]) -> None:
    made = Mirage(1, budget=budget, **options).fit_transform(GRAPHS, TARGET)  # type: ignore[arg-type]
    assert made.bytes <= budget
    assert made.bytes > (0.75 if options.get("storage") == "shared" else 0.5) * budget
    assert set(made.target.tolist()) == {0, 1}


def test_a_budget_holds_where_all_classes_together_need_wider_numbers() -> None:
    # Twenty trees of a class have one-byte ids, four hundred of all classes have not.
    classes = 20
    long = [path([*((10 * label + i) % 200 + 1 for i in range(10)), label + 1]) for label in range(classes)]
    short = [path([*((10 * label + i) % 200 + 1 for i in range(6)), label + 1]) for label in range(classes)]
    miner = Mirage(2, budget=3418, closed=True, storage="shared").fit(
        [*long, *long, *short], torch.arange(3 * classes) % classes
    )
    assert fits_alone(miner, 3418) > 3418, "what fits class by class is too much together"
    assert miner.transform().bytes <= 3418


def test_a_larger_budget_lowers_thresholds() -> None:
    small, large = (Mirage(1, budget=budget).fit(GRAPHS, TARGET).thresholds_ for budget in (200, 2000))
    assert all(large[label] < small[label] for label in small)


def test_shared_storage_holds_more_sets_and_loses_nothing() -> None:
    thresholds = {0: 15, 1: 15}
    shared = Mirage(2, thresholds=thresholds, storage="shared").fit_transform(GRAPHS, TARGET)
    written = Mirage(2, thresholds=thresholds).fit_transform(GRAPHS, TARGET)
    assert shared.bytes < written.bytes / 2
    for one, other in zip(shared.samples, written.samples, strict=True):
        assert roots_of(one, 2) == roots_of(other, 2)


def test_the_set_view_loses_multiplicity_and_the_multiset_view_keeps_its_mean() -> None:
    # A path of three: the middle tree once, the end tree twice.
    graphs, target = [path([1, 2, 1])] * 4 + [path([3, 2])] * 4, torch.tensor([0] * 4 + [1] * 4)
    plain = Mirage(2, thresholds={0: 4, 1: 4}).fit_transform(graphs, target).samples[0]
    counted = Mirage(2, thresholds={0: 4, 1: 4}, multiset=True).fit_transform(graphs, target).samples[0]
    torch.manual_seed(0)
    model = GraphNetwork("gin", 3, 1, 2, width=8).eval()
    real, seen, weighed = (model(**collate([graph])) for graph in (graphs[0], plain, counted))
    assert float((seen - real).abs().max()) > 1e-3, "sums of another magnitude than at test time"
    torch.testing.assert_close(weighed, real, atol=1e-5, rtol=1e-5)
    assert sorted(counted.pool[counted.pool > 0].tolist()) == [1.0, 2.0]


def test_isolated_nodes_are_dropped_and_a_graph_of_them_disappears() -> None:
    alone = Graph(torch.tensor([1, 1]), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    mixed = Graph(torch.tensor([1, 2, 3]), torch.tensor([[0, 1], [1, 0]]), torch.ones(2).long())
    miner = Mirage(1, thresholds={0: 1, 1: 1}, class_filter=False)
    miner.fit([alone, path([1, 2]), mixed], torch.tensor([0, 0, 1]))
    assert miner.transactions_[0][0] == Counter()
    assert len(miner.transactions_[1][0]) == 2
    with pytest.raises(UserError, match="class 0: given no set with a support of 1"):
        Mirage(1, thresholds={0: 1, 1: 1}).fit([alone, path([1, 2])], torch.tensor([0, 1]))


def test_a_class_without_a_frequent_set_is_refused() -> None:
    with pytest.raises(UserError, match="class 1: given no set with a support of 21; .*lower its threshold"):
        Mirage(1, thresholds={0: 2, 1: 21}, most_itemsets=10**6, closed=True).fit(GRAPHS, TARGET)
    same = [path([1, 2, 3])] * 4
    with pytest.raises(UserError, match="turn the class filter off"):
        Mirage(1, budget=400).fit(same, torch.tensor([0, 1, 0, 1]))


def test_too_low_thresholds_and_hubs_are_refused_by_name() -> None:
    with pytest.raises(TooManyItemsets, match="threshold: given 1; more than 50 itemsets"):
        Mirage(2, thresholds={0: 1, 1: 1}, most_itemsets=50).fit(GRAPHS, TARGET)
    leaves = 100
    index = torch.tensor([[node, 0] for node in range(1, leaves + 1)]).T
    star = Graph(torch.ones(leaves + 1).long(), torch.cat([index, index.flip(0)], 1), torch.ones(2 * leaves).long())
    with pytest.raises(UserError, match="computation tree: .*100 neighbours.*leave out the hub"):
        Mirage(4, budget=500).fit([star, path([1, 2])], torch.tensor([0, 1]))


def test_settings_that_contradict_are_refused() -> None:
    for options in ({}, {"budget": 10, "thresholds": {0: 1}}):
        with pytest.raises(UserError, match="exactly one of them"):
            Mirage(2, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="storage: given zip"):
        Mirage(2, budget=9, storage="zip")
    with pytest.raises(UserError, match="one for class 1 too"):
        Mirage(2, thresholds={0: 20}).fit(GRAPHS, TARGET)


def test_closed_mining_copes_with_classes_whose_graphs_are_alike() -> None:
    graphs = [random_graph(seed // 6, nodes=20, density=0.15) for seed in range(12)]
    target = torch.arange(12) // 6
    with pytest.raises(TooManyItemsets):
        Mirage(2, thresholds={0: 6, 1: 6}).fit(graphs, target)
    mined = Mirage(2, thresholds={0: 6, 1: 6}, closed=True).fit(graphs, target).itemsets_
    assert [len(sets) for sets in mined.values()] == [1, 1]


def test_the_known_motif_is_mined_and_shuffled_labels_hide_it() -> None:
    graphs, target = motif_graphs(200, seed=5)

    def found(labels: Tensor) -> list[bool]:
        miner = Mirage(2, budget=600).fit(graphs, labels)
        held = [{miner.trees_.canonical(tree) for one in miner.itemsets_[label] for tree in one} for label in (0, 1)]
        return [text in held[label] - held[1 - label] for label in (0, 1) for text in true_trees(2)[label]]

    assert all(found(target))
    generator = torch.Generator().manual_seed(0)
    assert not all(found(target[torch.randperm(200, generator=generator)]))


def test_a_distilled_set_goes_to_a_file_and_back(tmp_path: Path) -> None:
    made = Mirage(2, budget=600).fit_transform(GRAPHS, TARGET)
    read = DistilledSet.load(made.save(tmp_path / "mirage.safetensors"))
    assert [roots_of(one, 2) for one in read.samples] == [roots_of(one, 2) for one in made.samples]


def test_the_exact_claims_hold_on_the_real_data() -> None:
    assert properties.distinct_trees() == 0
    assert properties.skew() == 0
    assert properties.size_shortfall() == 0
    assert properties.size_shortfall(0.95) > 0, "the check can fail"
    assert properties.skew(0.02) > 0.2, "the check can fail"
    assert properties.root_error("gin") < 1e-5
    assert properties.root_error("gcn", 1) < 1e-5
    assert properties.root_error("gcn") > 1e-3, "leaves have other degrees than their nodes"


def test_the_card_is_complete() -> None:
    assert read_card(Path(experiment.__file__).parent / "card.toml").slug == "mirage"


@pytest.mark.parametrize("name", experiment.EXPERIMENTS)
def test_the_arms_are_comparable(name: str) -> None:
    found = experiment.EXPERIMENTS[name]("smoke")
    found.check()
    assert any(isinstance(claim, Exact) for claim in experiment.Mutag.claims)
    train = found.bed.splits(0).train
    task = experiment.Task(train, found.budget(train), 0, found.bed)
    for arm in ("random", "mirage"):
        assert found.arms[arm].setting(task).bytes <= task.budget


def test_what_is_pooled_is_measured_and_test_graphs_can_be_pooled_as_sets() -> None:
    found = experiment.Cuneiform("smoke")
    splits = found.bed.splits(0)
    task = experiment.Task(splits.train, found.budget(splits.train), 0, found.bed)
    whole = found.measure("full", packed(splits.train), task)["pooled_nodes"]
    assert whole == pytest.approx(sum(map(len, splits.train.input)) / len(splits.train))
    pooled = {name: found.measure(name, found.arms[name].setting(task), task) for name in ("mirage", "mirage-multiset")}
    assert pooled["mirage"]["pooled_nodes"] < pooled["mirage-multiset"]["pooled_nodes"] <= 1.5 * whole
    whole_set = experiment.GraphExperiment.measure(found, "full", packed(splits.train), task)
    assert whole_set["size_agreement"] == pytest.approx(1)
    inverted = [path([1] * (3 if label else 9)) for label in range(2)]
    task_of_two = experiment.Task(Split(inverted, torch.tensor([0, 1]), torch.arange(2)), 0, 0, found.bed)
    wrong = DistilledSet.of(inverted, torch.tensor([1, 0]))
    assert found.measure("full", wrong, task_of_two)["size_agreement"] == pytest.approx(-1)
    assert found.tested("mirage", splits.test) is splits.test
    once = found.tested("mirage-sets-tested", splits.test)
    trees = ComputationTrees(found.bed.plan.layers)
    for graph, pools in zip(splits.test.input, (one.pool for one in once.input), strict=True):
        assert float(pools.sum()) == pytest.approx(len(set(trees.roots(graph))))
    deeper = found.arms["mirage-multiset-deeper"].setting(task)
    assert task.budget < deeper.bytes <= 3 * task.budget, "deeper trees of all classes do not fit the others' bytes"


def test_pictures_are_small_and_of_the_first_seed() -> None:
    found = experiment.Mutag("smoke")
    outcome = found.run("mirage", 0)
    assert len(outcome.pictures) == 2
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in outcome.pictures.values())
    assert sum(map(len, outcome.pictures.values())) < 40_000
    assert outcome.metrics["set_bytes"] <= found.budget(found.bed.splits(0).train)
    train = found.bed.splits(0).train
    assert not found.draw("random", packed(train), experiment.Task(train, 800, 0, found.bed))
