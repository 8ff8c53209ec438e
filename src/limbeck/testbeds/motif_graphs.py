"""Generated graphs whose class is a motif: a house or a ring of five, hung on a random tree with a cycle.

Generated because no data set says which subgraph makes its class: here it is known, and with it the computation trees
that a miner has to find.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from limbeck.data.computation_trees import ComputationTrees
from limbeck.data.graphs import Graph

# Node 0 of a motif holds on to the rest of the graph.
MOTIFS = {
    "house": ((0, 1), (1, 2), (2, 3), (3, 0), (2, 4), (3, 4)),
    "ring": ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0)),
}
_MOTIF_NODES, _MOTIF_LABEL, _LABELS = 5, 1, 3
# Among 15 to 25 nodes the motif's five are so small a part of the sum that GCN needs 3,000 steps to get off the ground.
_BASE_NODES, _MOST_NEIGHBOURS = (7, 9), 3
# Motif nodes so far from node 0 that nothing beyond it lies within two hops but node 0 itself.
_FAR = {"house": (2, 4), "ring": (2, 3)}
TRUE_HOPS = 2


def motif_graphs(count: int, seed: int) -> tuple[list[Graph], Tensor]:
    """``count`` graphs and their classes, 0 for the house and 1 for the ring, in turn.

    The rest of a graph is a random tree of 7 to 9 nodes with at most three neighbours each, one further edge between
    nodes that have room, and labels drawn from three; all nodes of the motif have the first label.
    """
    generator = random.Random(seed)
    graphs = [_draw(name, generator) for _, name in zip(range(count), list(MOTIFS) * count)]
    return graphs, torch.arange(count) % len(MOTIFS)


def true_trees(hops: int) -> list[set[str]]:
    """Class -> canonical texts of the computation trees that lie wholly inside its motif.

    The trees of the motif's far nodes reach node 0 as a leaf at ``TRUE_HOPS`` hops, so whatever the motif hangs on
    cannot change them; deeper trees have no such truth.
    """
    trees = ComputationTrees(min(hops, TRUE_HOPS))
    found = []
    for name, edges in MOTIFS.items():
        ids = trees.roots(_graph([_MOTIF_LABEL] * _MOTIF_NODES, list(edges)))
        found.append({trees.canonical(ids[node]) for node in _FAR[name]})
    return found


def _draw(motif: str, generator: random.Random) -> Graph:
    base = generator.randint(*_BASE_NODES)
    neighbours = [0] * base
    edges: list[tuple[int, int]] = []

    def join(one: int, other: int) -> None:
        edges.append((one, other))
        neighbours[one] += 1
        neighbours[other] += 1

    for node in range(1, base):
        join(node, generator.choice([other for other in range(node) if neighbours[other] < _MOST_NEIGHBOURS]))
    room = [node for node in range(base) if neighbours[node] < _MOST_NEIGHBOURS]
    pairs = [(a, b) for a in room for b in room if a < b and (a, b) not in edges and (b, a) not in edges]
    if pairs:
        join(*generator.choice(pairs))
    labels = [generator.randint(1, _LABELS) for _ in range(base)] + [_MOTIF_LABEL] * _MOTIF_NODES
    edges += [(base + one, base + other) for one, other in MOTIFS[motif]]
    edges.append((generator.randrange(base), base))
    return _graph(labels, edges)


def _graph(labels: list[int], edges: list[tuple[int, int]]) -> Graph:
    index = torch.tensor(edges, dtype=torch.int64).T
    index = torch.cat([index, index.flip(0)], dim=1)
    return Graph(torch.tensor(labels), index, torch.ones(index.shape[1], dtype=torch.int64))
