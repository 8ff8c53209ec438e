"""Computation trees: what a message-passing network of L layers sees of a node.

The tree T(v, L) is the neighbourhood of v unrolled: the root carries the label of v, and for every edge u -> v it has a
child T(u, L - 1), marked with the edge's label. The node one came from is a neighbour again, so it reappears: these are
trees of walks. Two nodes with equal trees have equal embeddings in every such network.

Trees are interned level by level, as in Weisfeiler and Leman's colour refinement: a tree is the pair (label, sorted
children), children are ids of smaller trees, and equal pairs share one id. So building is linear in the edges per
level, ids agree exactly when the trees are isomorphic, and a tree is written out only when somebody asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.data.graphs import Graph
from limbeck.errors import UserError

Children = tuple[tuple[int, int], ...]


class ComputationTrees:
    """A pool of distinct labelled trees of one depth, shared by many graphs.

    Args:
        hops: depth L. Equality of embeddings holds for networks of at most ``hops`` layers.
        largest: most nodes that one tree may have when it is written out. A hub of degree d has about d^L.
    """

    def __init__(self, hops: int, *, largest: int = 5_000) -> None:
        if hops < 1:
            raise UserError("hops", hops, "1 or more")
        self.hops, self.largest = hops, largest
        self._ids: dict[tuple[int, Children], int] = {}
        self._trees: list[tuple[int, Children]] = []
        self._sizes: list[int] = []

    def of(self, graph: Graph, *, levels: bool = False) -> list[list[int]]:
        """Ids of the trees of every node: one list per node count, for the full depth alone or for all levels 0 to L.

        Raises:
            UserError: a tree would have more than ``largest`` nodes.
        """
        neighbours: list[list[tuple[int, int]]] = [[] for _ in range(len(graph))]
        for source, target, label in zip(*graph.edges.tolist(), graph.edge_labels.tolist(), strict=True):
            neighbours[target].append((label, source))
        labels = graph.nodes.tolist()
        found = [[self._intern(label, (), node, graph) for node, label in enumerate(labels)]]
        for _ in range(self.hops):
            below = found[-1]
            children = [tuple(sorted((label, below[source]) for label, source in near)) for near in neighbours]
            found.append(
                [self._intern(label, kids, node, graph) for node, (label, kids) in enumerate(zip(labels, children))]
            )
        return found if levels else found[-1:]

    def roots(self, graph: Graph) -> list[int]:
        """Id of the full-depth tree of every node."""
        return self.of(graph)[0]

    def __len__(self) -> int:
        """Distinct trees of all levels so far."""
        return len(self._trees)

    def size(self, tree: int) -> int:
        """Nodes of a tree when it is written out."""
        return self._sizes[tree]

    def label(self, tree: int) -> int:
        """Label id of the root."""
        return self._trees[tree][0]

    def children(self, tree: int) -> Children:
        """Pairs of an edge's label id and a child's tree id."""
        return self._trees[tree][1]

    def canonical(self, tree: int) -> str:
        """A text that two trees share exactly when they are isomorphic, whatever pool they come from."""
        label, kids = self._trees[tree]
        return f"{label}[{','.join(sorted(f'{edge}:{self.canonical(kid)}' for edge, kid in kids))}]"

    def expand(self, tree: int) -> Graph:
        """The tree written out: root first, edges from child to parent, the root alone counted in pooling."""
        labels, sources, targets, marks = [self.label(tree)], [], [], []
        queue = [(0, tree)]
        for place, current in queue:
            for edge, kid in self.children(current):
                sources.append(len(labels))
                targets.append(place)
                marks.append(edge)
                queue.append((len(labels), kid))
                labels.append(self.label(kid))
        return Graph(torch.tensor(labels), _index(sources, targets), _ids(marks), _roots(len(labels)))

    def intern(self, label: int, children: Iterable[tuple[int, int]] = ()) -> int:
        """Id of the tree with this root and these (edge label, tree id) children: for known trees and for files."""
        return self._intern(label, tuple(sorted(children)), None, None)

    def _intern(self, label: int, children: Children, node: int | None, graph: Graph | None) -> int:
        key = (label, children)
        found = self._ids.get(key)
        if found is None:
            size = 1 + sum(self._sizes[kid] for _, kid in children)
            if size > self.largest:
                where = "" if graph is None else f"node {node} of a graph with {len(graph)} nodes has "
                raise UserError(
                    "computation tree",
                    f"{where}{len(children)} neighbours and a tree of {size:,} nodes within {self.hops} hops",
                    f"at most {self.largest:,} nodes",
                    "use fewer hops, leave out the hub, or raise the cap (largest)",
                )
            found = self._ids[key] = len(self._trees)
            self._trees.append(key)
            self._sizes.append(size)
        return found


def forest(trees: ComputationTrees, ids: Sequence[int], counts: Sequence[float] | None = None) -> Graph:
    """One graph of disjoint trees, edges from child to parent; only roots count in pooling.

    Args:
        counts: how much each root counts, 1 by default; such as how often the tree occurs in a graph.
    """
    parts = [trees.expand(tree) for tree in ids]
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    pools = [(part.pool if part.pool is not None else _roots(len(part))) for part in parts]
    weights = [1.0] * len(parts) if counts is None else counts
    return Graph(
        torch.cat([part.nodes for part in parts]),
        torch.cat([part.edges + start for part, start in zip(parts, starts)], dim=1),
        torch.cat([part.edge_labels for part in parts]),
        torch.cat([pool * weight for pool, weight in zip(pools, weights, strict=True)]),
    )


def counted_once(graph: Graph, trees: ComputationTrees) -> Graph:
    """The graph with every distinct tree counted once in pooling, however many nodes have it: as a set of trees.

        pool_v = 1 / | { u : T(u, L) = T(v, L) } |

    Pooled so, a graph gives what the forest of its distinct trees gives (of nodes that count alike).
    """
    roots = trees.roots(graph)
    counts = Counter(roots)
    return replace(graph, pool=torch.tensor([1 / counts[tree] for tree in roots]))


def tree_histograms(graphs: Sequence[Graph], hops: int, *, least_graphs: int = 1, largest: int = 5_000) -> Tensor:
    """How often each tree of depth 0 to ``hops`` occurs in each graph: the features of the Weisfeiler-Leman subtree
    kernel, float ``[G, T]`` (Shervashidze et al., JMLR 2011).

    Args:
        least_graphs: leave out trees that fewer graphs have: alone in its graph, a tree is like nothing.
        largest: see :class:`ComputationTrees`.
    """
    trees = ComputationTrees(hops, largest=largest)
    counted: list[Mapping[int, int]] = [
        Counter(tree for level in trees.of(graph, levels=True) for tree in level) for graph in graphs
    ]
    holders = Counter(tree for counts in counted for tree in counts)
    column = {tree: place for place, tree in enumerate(sorted(t for t, n in holders.items() if n >= least_graphs))}
    features = torch.zeros(len(graphs), len(column))
    for row, counts in enumerate(counted):
        for tree, count in counts.items():
            if tree in column:
                features[row, column[tree]] = count
    return features


def coverage(counts: Mapping[int, int], shares: Sequence[float] = (0.2,)) -> list[float]:
    """Share of all nodes that the most frequent ``shares`` of the distinct trees account for."""
    falling = torch.tensor(sorted(counts.values(), reverse=True), dtype=torch.float64)
    total = falling.cumsum(0) / falling.sum()
    return [float(total[max(round(share * len(falling)), 1) - 1]) for share in shares]


def _index(sources: list[int], targets: list[int]) -> Tensor:
    return torch.tensor([sources, targets], dtype=torch.int64)


def _ids(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _roots(count: int) -> Tensor:
    pool = torch.zeros(count)
    pool[0] = 1
    return pool
