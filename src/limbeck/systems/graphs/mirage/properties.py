"""What mathematics decides about Mirage, measured on the data of the experiments; each gives a deviation."""

from __future__ import annotations

import time
from collections import Counter
from functools import cache

import torch

from limbeck.condensation import train_fresh
from limbeck.data.computation_trees import ComputationTrees, coverage
from limbeck.data.graphs import graphs_of
from limbeck.measure import auc
from limbeck.models.graphs import GraphNetwork
from limbeck.testbeds import load
from limbeck.testbeds.motif_graphs import TRUE_HOPS, true_trees
from limbeck.testbeds.tu_graphs import TUGraphs

from .method import Mirage

# Distinct trees of MUTAG at one, two and three hops, counted independently for the sheet.
MUTAG_TREES = {1: 64, 2: 277, 3: 796}


@cache
def _bed(regime: str) -> TUGraphs:
    bed = load(f"tu_graphs:{regime}")
    if not isinstance(bed, TUGraphs):
        raise TypeError(type(bed).__name__)
    return bed


def tree_counts(regime: str, hops: int) -> Counter[int]:
    """How often each distinct tree occurs in the whole data set."""
    trees = ComputationTrees(hops)
    return Counter(tree for graph in _bed(regime).data.graphs for tree in trees.roots(graph))


def distinct_trees() -> float:
    """By how much MUTAG's distinct trees differ from the independent count."""
    return float(sum(abs(len(tree_counts("plain", hops)) - count) for hops, count in MUTAG_TREES.items()))


def skew(share: float = 0.2) -> float:
    """What the most frequent fifth of MUTAG's trees at two hops lacks to cover four nodes in five."""
    return max(0.0, 0.8 - coverage(tree_counts("plain", 2), (share,))[0])


def size_shortfall(least: float = 0.8) -> float:
    """What the number of atoms lacks to rank MUTAG's classes with that AUC."""
    data = _bed("plain").data
    sizes = torch.tensor([[0.0, len(graph)] for graph in data.graphs])
    return max(0.0, least - auc(sizes, data.target))


def root_error(kind: str, more_hops: int = 0, layers: int = 2) -> float:
    """Largest difference between a node's embedding in its graph and its tree's root's, over thirty molecules and an
    untrained network."""
    torch.manual_seed(0)
    data, trees, worst = _bed("plain").data, ComputationTrees(layers + more_hops), 0.0
    model = GraphNetwork(kind, len(data.node_table), len(data.edge_table), 2, layers=layers).eval()
    for graph in data.graphs[:30]:
        nodes = model.embed(graph.nodes, graph.edges, graph.edge_labels)
        for node, tree in enumerate(trees.roots(graph)):
            written = trees.expand(tree)
            root = model.embed(written.nodes, written.edges, written.edge_labels)[0]
            worst = max(worst, float((root - nodes[node]).detach().abs().max()))
    return worst


def slower_than_training() -> float:
    """1 if distilling MUTAG takes more processor time than training one GIN on all of it, else 0; each the faster of
    two runs. (How many seconds each takes stands among the costs: a ratio would differ from run to run.)"""
    bed = _bed("plain")
    train = bed.splits(0).train

    def spent(work: str) -> float:
        start = time.process_time()
        if work == "distil":
            Mirage(2, budget=800).fit_transform(graphs_of(train), train.labels)
        else:
            train_fresh(lambda: bed.network("gin"), train, bed.training)
        return time.process_time() - start

    distil, training = (min(spent(work) for _ in range(2)) for work in ("distil", "train"))
    return float(distil > training)


def missing_motifs() -> float:
    """Share of the known motif trees that are in none of the sets mined from their class, at 5% of its graphs."""
    bed = _bed("motif")
    train = bed.splits(0).train
    counts = train.labels.bincount().tolist()
    miner = Mirage(TRUE_HOPS, thresholds={label: count // 20 for label, count in enumerate(counts)}, closed=True)
    miner.fit(graphs_of(train), train.labels)
    truth = [(label, text) for label, texts in enumerate(true_trees(TRUE_HOPS)) for text in texts]
    found = {
        label: {miner.trees_.canonical(tree) for itemset in mined for tree in itemset}
        for label, mined in miner.itemsets_.items()
    }
    return sum(text not in found[label] for label, text in truth) / len(truth)
