"""Mirage: a graph data set distilled by mining the computation trees that occur together (ICLR 2024).

A message-passing network of L layers sees of a node v only its computation tree T(v, L), the neighbourhood unrolled.
So a graph is, to every such network, the collection of its trees, and few distinct trees account for most nodes.
Per class:

    transaction of G    t(G) = { canon(T(v, L)) : v in G }                      (a set: how often a tree occurs is lost)
    support             sup_c(S) = | { G of class c : S is a subset of t(G) } |
    kept                { S : sup_c(S) >= theta_c },  but not S with sup_k(S) >= theta_k for another class k
    distilled           every S as the forest of its trees, edges from child to parent, with the weight sup_c(S)

A network is then trained on forests drawn in proportion to their weights, pooling roots only. In a network that sums,
averages or attends over neighbours, the root of T(v, L) has exactly the embedding of v in G, so no network has a part
in the distillation and none has to be matched.

Mining is FP-growth (:mod:`limbeck.condensation.itemsets`); trees are interned level by level
(:mod:`limbeck.data.computation_trees`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.condensation.itemsets import Itemset, TooManyItemsets, frequent_itemsets
from limbeck.condensation.packing import Forests
from limbeck.condensation.store import DistilledSet
from limbeck.data.computation_trees import ComputationTrees, forest
from limbeck.data.graphs import Graph
from limbeck.errors import UserError

from .budget import Mined, fill_budget


class Mirage:
    """Mine a labelled graph set: ``fit(graphs, target)``, then ``transform()`` gives the distilled set.

    Args:
        hops: L, at least the layers of the networks that will be trained (one more for GCN; see the page).
        thresholds: class -> smallest support theta_c, as a number of graphs; or
        budget: most bytes of the distilled set. Every class gets an equal share and the lowest threshold whose sets fit
            it; while the class filter leaves room, the shares grow.
        class_filter: leave out sets that are frequent in more than one class.
        multiset: store how often each tree occurs on average in the graphs that hold the set, and let its root count so
            often in pooling (an extension: the set view loses it).
        class_shares: ``data``: a class is drawn as often as it occurs among the graphs, and inside it sets by their
            support; ``sets``: all sets by their support, whatever their class.
        closed: mine closed sets only, those without a larger one of the same support (an extension). Where graphs of a
            class are much alike there is no threshold at which all frequent sets are few.
        storage: ``written`` stores every set as a plain graph, as the released code does; ``shared`` stores what trees
            have in common once, in about a tenth of the bytes (an extension).
        most_itemsets: give up on thresholds that make more sets per class than this.
        largest_tree: refuse trees with more nodes, which hubs cause.

    After ``fit``: ``trees_`` (the pool), ``transactions_`` (class -> tree counts of every graph), ``thresholds_``, and
    ``itemsets_`` (class -> {sorted tree ids: support}), falling by support.
    """

    def __init__(
        self,
        hops: int = 2,
        *,
        thresholds: Mapping[int, int] | None = None,
        budget: int | None = None,
        class_filter: bool = True,
        multiset: bool = False,
        class_shares: str = "data",
        closed: bool = False,
        storage: str = "written",
        most_itemsets: int = 2_000,
        largest_tree: int = 5_000,
    ) -> None:
        if (thresholds is None) == (budget is None):
            raise UserError("thresholds, budget", f"{thresholds}, {budget}", "exactly one of them")
        if class_shares not in ("data", "sets"):
            raise UserError("class_shares", class_shares, ("data", "sets"))
        if storage not in ("written", "shared"):
            raise UserError("storage", storage, ("written", "shared"))
        self.closed, self.storage = closed, storage
        self.hops, self.thresholds, self.budget = hops, thresholds, budget
        self.class_filter, self.multiset, self.class_shares = class_filter, multiset, class_shares
        self.most_itemsets, self.largest_tree = most_itemsets, largest_tree

    def fit(self, graphs: Sequence[Graph], target: Tensor) -> Mirage:
        """Build the trees, turn graphs into transactions, mine every class.

        Raises:
            UserError: a class without a frequent set, a tree past ``largest_tree``, or a budget that buys no set.
        """
        self.trees_ = ComputationTrees(self.hops, largest=self.largest_tree)
        self.transactions_: dict[int, list[Counter[int]]] = {label: [] for label in sorted(set(target.tolist()))}
        for graph, label in zip(graphs, target.tolist(), strict=True):
            counts = Counter(self.trees_.roots(graph))
            # The tree of an isolated node is that node: it has no messages to learn from.
            self.transactions_[label].append(
                Counter({tree: n for tree, n in counts.items() if self.trees_.children(tree)})
            )
        self._mined: dict[tuple[int, int], Mined | int] = {}
        self._multiplicities: dict[tuple[int, Itemset], list[float]] = {}
        if self.budget is not None:
            self.thresholds_, self.itemsets_ = fill_budget(self, self.budget)
        else:
            self.thresholds_ = dict(self.thresholds or {})
            self.itemsets_ = self._itemsets(self.thresholds_)
        for label, found in self.itemsets_.items():
            if not found:
                hint = "lower its threshold, raise the budget, or turn the class filter off"
                raise UserError(f"class {label}", f"no set with a support of {self.thresholds_[label]}", "one", hint)
        return self

    def transform(self) -> DistilledSet:
        """Every itemset as a forest with its class and weight."""
        return self.assemble(self.itemsets_)

    def fit_transform(self, graphs: Sequence[Graph], target: Tensor) -> DistilledSet:
        """Both."""
        return self.fit(graphs, target).transform()

    # Mining.

    def mine(self, label: int, threshold: int, limit: int | None = None) -> Mined | None:
        """Frequent itemsets of one class, before the filter; ``None`` where there are more than ``limit``."""
        limit = self.most_itemsets if limit is None else min(limit, self.most_itemsets)
        known = self._mined.get((label, threshold), 0)
        # What is kept is the sets, or the largest limit at which there were too many.
        if isinstance(known, int) and known < limit:
            try:
                known = frequent_itemsets(self.transactions_[label], threshold, closed=self.closed, limit=limit)
            except TooManyItemsets:
                known = limit
            self._mined[label, threshold] = known
        return None if isinstance(known, int) or len(known) > limit else known

    def _itemsets(self, thresholds: Mapping[int, int]) -> dict[int, Mined]:
        found: dict[int, Mined] = {}
        for label in self.transactions_:
            if label not in thresholds:
                raise UserError("thresholds", sorted(thresholds), f"one for class {label} too")
            mined = self.mine(label, thresholds[label])
            if mined is None:
                raise TooManyItemsets(thresholds[label], self.most_itemsets)
            found[label] = mined
        return self.filtered(found)

    def filtered(self, mined: dict[int, Mined]) -> dict[int, Mined]:
        """Without the sets that more than one class has, unless the filter is off."""
        if not self.class_filter:
            return mined
        classes = Counter(itemset for sets in mined.values() for itemset in sets)
        return {label: {one: n for one, n in sets.items() if classes[one] == 1} for label, sets in mined.items()}

    # The distilled set.

    def assemble(self, itemsets: Mapping[int, Mined]) -> DistilledSet:
        """Sets of the classes as forests with their classes and weights."""
        pairs = [(label, itemset) for label, mined in itemsets.items() for itemset in mined]
        sets = [itemset for _, itemset in pairs]
        counts = [self.multiplicity(label, itemset) for label, itemset in pairs] if self.multiset else None
        target = torch.tensor([label for label, _ in pairs], dtype=torch.int64)
        if self.storage == "written":
            graphs = [forest(self.trees_, one, None if counts is None else counts[i]) for i, one in enumerate(sets)]
            return DistilledSet.of(graphs, target, self._weights(itemsets))
        return DistilledSet.of(Forests(self.trees_, sets, counts), target, self._weights(itemsets))

    def _weights(self, itemsets: Mapping[int, Mined]) -> Tensor | None:
        supports = [support for mined in itemsets.values() for support in mined.values()]
        if self.class_shares == "sets" or not supports:
            return torch.tensor(supports) if supports else None
        shares = {
            label: len(self.transactions_[label]) / max(sum(mined.values()), 1) for label, mined in itemsets.items()
        }
        weights = torch.tensor([n * shares[label] for label, mined in itemsets.items() for n in mined.values()])
        # Two bytes each: a sampler has no use for more than three digits.
        return (weights / weights.max()).half()

    def multiplicity(self, label: int, itemset: Itemset) -> list[float]:
        """Mean number of occurrences of each tree of a set in the graphs of the class that hold the set."""
        key = (label, itemset)
        if key not in self._multiplicities:
            holders = [counts for counts in self.transactions_[label] if all(tree in counts for tree in itemset)]
            self._multiplicities[key] = [sum(counts[tree] for counts in holders) / len(holders) for tree in itemset]
        return self._multiplicities[key]
